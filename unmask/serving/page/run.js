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
    const {evaluation} = step;
    for (const position of step.erased ?? []) this.history[position].push({evaluation, erased: true});
    for (const token of step.written) this.history[token.position].push({...token, evaluation});
    const before = this.steps.at(-1)?.total ?? 0;
    const changes = (step.written ?? []).filter(token => this.isFirst(token.position)).length;
    this.steps.push({evaluation, seconds: step.seconds, total: before + changes - this.lost(step)});
  }

  // Whether the last event at a position filled a mask, and did not replace a token.
  isFirst(position) {
    const past = this.history[position];
    return past.length === 1 ? this.initial[position].id === null : past.at(-2).erased === true;
  }

  lost(step) {
    return (step.erased ?? []).length;
  }

  finish(end) {
    this.end = end;
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
