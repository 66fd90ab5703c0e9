// What is known of one run: the canvas it began with and what every evaluation wrote or masked again.

export class Run {
  constructor(start) {
    this.rule = start.rule;
    this.promptLength = start.prompt_length;
    this.initial = start.tokens;
    this.masks = start.tokens.filter(token => token.id === null).length;
    this.history = start.tokens.map(() => []);
    this.steps = [];
    this.end = null;
  }

  add(step) {
    const {evaluation, seconds, written, erased = []} = step;
    const filled = written.filter(token => this.isMasked(token.position)).length;
    for (const token of written) this.history[token.position].push({...token, evaluation});
    // After that: a rule may mask what it has just written.
    for (const position of erased) this.history[position].push({evaluation, erased: true});
    const before = this.steps.at(-1)?.total ?? 0;
    this.steps.push({evaluation, seconds, total: before + filled - erased.length});
  }

  isMasked(position) {
    const last = this.history[position].at(-1);
    return last === undefined ? this.initial[position].id === null : last.erased === true;
  }

  finish(end) {
    this.end = end;
  }

  // Ends a run that was cut off.
  stop() {
    const {seconds} = this.at(Infinity);
    this.end = {nfe: this.evaluations, seconds, finish_reason: "stopped", text: ""};
  }

  get evaluations() {
    return Math.max(this.steps.at(-1)?.evaluation ?? 0, this.end?.nfe ?? 0);
  }

  // The last step that an evaluation had seen.
  stepAt(evaluation) {
    let found = null;
    for (const step of this.steps) {
      if (step.evaluation > evaluation) break;
      found = step;
    }
    return found;
  }

  at(evaluation) {
    const step = this.stepAt(evaluation), over = this.end !== null && evaluation >= this.evaluations;
    return {
      evaluation: over ? this.evaluations : Math.min(evaluation, this.evaluations),
      seconds: over ? this.end.seconds : step?.seconds ?? 0,
      written: step?.total ?? 0,
      over,
    };
  }

  cell(position, evaluation) {
    const past = this.history[position];
    let last = null;
    for (const event of past) {
      if (event.evaluation > evaluation) break;
      last = event;
    }
    if (last === null) {
      const token = this.initial[position];
      return token.id === null ? {state: "masked"} : {state: "given", text: token.text ?? ""};
    }
    const fresh = last.evaluation === evaluation;
    return last.erased ? {state: "masked", erased: fresh} : {state: "written", fresh, ...last};
  }
}

// How far runs can be compared: to where the slowest of those that still go on has come.
export function reached(runs) {
  const furthest = Math.max(0, ...runs.map(run => run?.evaluations ?? 0));
  return Math.min(furthest, ...runs.filter(run => !run?.end).map(run => run?.evaluations ?? 0));
}
