// What cells are coloured by. Every scale runs from a colour near the page's to one far from it, ever darker or ever
// lighter, so that it is read the same without seeing hues; the text on it is black or white, whichever is clearer.

const RAMPS = {
  light: {
    evaluation: ["#26418f", "#2c6aa8", "#3f97b5", "#7cc3b8", "#bfe3c5", "#eaf5dc"],
    entropy: ["#fdf3dc", "#fbdca4", "#f6b26b", "#e67f4a", "#c64a3d", "#8a1f3a"],
    probability: ["#4a1c73", "#7740a0", "#a070c4", "#c5a5de", "#e0d0ef", "#f3edf9"],
  },
  dark: {
    evaluation: ["#e6f3b4", "#a5dcb4", "#5db8b6", "#3b87a6", "#2d5a86", "#26385e"],
    entropy: ["#3a2e27", "#6b402a", "#a55a31", "#d9854a", "#f3b676", "#ffe6b8"],
    probability: ["#f2e3ff", "#d3b2f2", "#aa82d6", "#7e5bb0", "#574284", "#3a3157"],
  },
};

const parse = hex => [1, 3, 5].map(at => parseInt(hex.slice(at, at + 2), 16));

function shade(stops, share) {
  const place = Math.min(1, Math.max(0, share)) * (stops.length - 1);
  const low = Math.min(Math.floor(place), stops.length - 2);
  const [a, b] = [parse(stops[low]), parse(stops[low + 1])];
  return a.map((part, index) => Math.round(part + (b[index] - part) * (place - low)));
}

function luminance(rgb) {
  const [r, g, b] = rgb.map(part => part / 255).map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}

// At this luminance black and white are equally far away: 4.58 to 1.
const MIDDLE = 0.179;

const SCALES = {
  // Logarithmic, and known before the run: the first evaluations are told apart, and a long run does not recolour.
  evaluation: {
    share: (cell, masks) => Math.log(cell.evaluation) / Math.log(Math.max(2, masks)),
    ticks: masks => {
      const most = Math.max(2, masks), powers = [1];
      while (powers.at(-1) * 2 <= most) powers.push(powers.at(-1) * 2);
      const every = Math.ceil(powers.length / 6);
      return powers.filter((_, index) => index % every === 0).map(n => [Math.log(n) / Math.log(most), String(n)]);
    },
    about: "Written in the first evaluation to the last, on a logarithmic scale.",
  },
  entropy: {
    share: cell => cell.entropy / (cell.entropy + 1),
    ticks: () => [0, 0.3, 1, 3].map(h => [h / (h + 1), String(h)]).concat([[1, "nats"]]),
    about: "Entropy of the model's marginal when the token was written, from 0 nats, certain, upwards.",
  },
  probability: {
    share: cell => cell.probability,
    ticks: () => [0, 0.25, 0.5, 0.75, 1].map(p => [p, String(p)]),
    about: "Probability of the token under the model when it was written, from 0 to 1.",
  },
};

export const about = name => SCALES[name].about;
export const ticks = (name, masks) => SCALES[name].ticks(masks);

export function gradient(name, theme) {
  return `linear-gradient(to right, ${RAMPS[theme][name].join(", ")})`;
}

// The fill of a written cell, and the colour of its text.
export function paint(cell, name, theme, masks) {
  const rgb = shade(RAMPS[theme][name], SCALES[name].share(cell, masks));
  return {fill: `rgb(${rgb.join(" ")})`, ink: luminance(rgb) > MIDDLE ? "#000000" : "#ffffff"};
}
