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
  antibodies: [
    ["A loop", "QVQLVQSGAEVKKPGASVKVSCKAS[MASK:8]MHWVRQAPGQGLEWMGWINPNSGGTNYAQKFQGRVTMTRDTSISTAYMELSRLRSDDTAVYYCAR"],
    ["A framework", "QVQLVQSGAEVKKPGASVKVSCKASGYTFTGYYMHWVRQ[MASK:10]WINPNSGGTNYAQKFQGRVTMTRDTSISTAYMELSRLRSDDTAVYYCAR"],
  ],
};

// What is asked of a model, and what its answers are called, by the same.
const WORDS = {
  text: ["The model goes on from here. Or select a part of the text and mask it, to have it filled in.", "texts"],
  sudoku: ["", "grids"],
  reactions: ["Reactants>>products in SMILES. Select a part of it and mask it, to have it filled in.", "reactions"],
  antibodies: ["A chain, a letter for each residue. Select a part of it and mask it, to have it filled in.", "chains"],
};

export const examples = kind => EXAMPLES[kind] ?? EXAMPLES.text;
export const help = kind => (WORDS[kind] ?? WORDS.text)[0];
export const things = kind => (WORDS[kind] ?? WORDS.text)[1];
