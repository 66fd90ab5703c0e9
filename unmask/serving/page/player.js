// Where on the way the page is: the evaluation shown. A run that comes in is played like one that is over: the place
// moves on with what is known, at a pace that can be watched, however fast the server is.

const WATCHED = 9000, SHORTEST = 25, LONGEST = 420;

export class Player {
  constructor(onChange) {
    this.onChange = onChange;
    this.calm = matchMedia("(prefers-reduced-motion: reduce)");
    this.speed = 1;
    this.reset();
  }

  reset() {
    clearTimeout(this.timer);
    this.timer = null;
    this.at = this.last = this.expected = 0;
    this.ended = true;
    this.playing = this.asked = false;
  }

  // A run begins that may take so many evaluations.
  begin(expected) {
    this.reset();
    this.expected = expected;
    this.ended = false;
    this.playing = true;
    this.onChange();
  }

  grow(last) {
    this.last = Math.max(this.last, last);
    this.move();
  }

  end(last) {
    this.ended = true;
    this.grow(last);
  }

  // The right end of the slider: while a run goes on, as far as it may go.
  get most() {
    return this.ended ? this.last : Math.max(this.last, this.expected);
  }

  get finished() {
    return this.ended && this.at >= this.last;
  }

  get pause() {
    return Math.min(LONGEST, Math.max(SHORTEST, WATCHED / Math.max(1, this.expected))) / this.speed;
  }

  move() {
    if (this.playing && this.timer === null) {
      if (this.calm.matches && !this.asked) this.at = this.last;
      else if (this.at < this.last) {
        this.at += 1;
        this.timer = setTimeout(() => { this.timer = null; this.move(); }, this.pause);
      }
      if (this.finished) this.playing = false;
    }
    this.onChange();
  }

  seek(place) {
    clearTimeout(this.timer);
    this.timer = null;
    this.at = Math.max(0, Math.min(this.last, place));
    this.playing = false;
    this.onChange();
  }

  toggle() {
    if (this.playing) {
      this.seek(this.at);
      return;
    }
    if (this.finished) this.at = 0;
    this.playing = this.asked = true;
    this.onChange();
    clearTimeout(this.timer);
    this.timer = setTimeout(() => { this.timer = null; this.move(); }, this.pause);
  }
}
