// Something to begin with, by the kind of the model.

const EXAMPLES = {
  text: [
    ["A question", "What is 9 plus 4?"],
    ["A sum", "12+35="],
    ["A missing digit", "12+3[MASK:1]=47"],
  ],
  sudoku: [
    ["Easy", "900040003001900000004070180000805070103000905020106000069080300000002700300060004"],
    ["17 clues", "000000010400000000020000000000050407008000300001090000300400200050100000000806000"],
    ["Empty grid", ".".repeat(81)],
  ],
  reactions: [
    ["A product", "CC(C)(C)OC(=O)NCc1ccccc1.OC(=O)C(F)(F)F>>[MASK:10]"],
    ["A reactant", "CC(=O)OC(C)=O.[MASK:10]>>CC(=O)NCc1ccccc1"],
    ["A ring", "OC(=O)c1ccccc1.CN>>CNC(=O)[MASK:8]"],
  ],
};

// A server that knows no more than that a model takes text leaves its name to tell a model of reactions.
export function kindOf(model) {
  const {id, unmask: {kind}} = model;
  return kind === "text" && /rxn|reaction/i.test(id) ? "reactions" : kind;
}

export const examples = kind => EXAMPLES[kind] ?? EXAMPLES.text;
