// Pages come before entries of the reference: who asks for "merging" wants the chapter that explains it first.
// Who asks for a name of the code, such as noise_rank_sweep, wants its entry.
const NAME = 30; // above what a part of a name can score
const isEntry = (page) => /^book\/api/.test(page);
const isNamed = (title, score) => score >= NAME && title.split(".").pop().includes("_");

var Scorer = {
  score: ([page, title, , , score]) => (isEntry(page) && !isNamed(title, score) ? score - 1000 : score),
  objNameMatch: NAME,
  objPartialMatch: 6,
  objPrio: { 0: 15, 1: 5, 2: -5 },
  objPrioDefault: 0,
  title: 15,
  partialTitle: 7,
  term: 5,
  partialTerm: 2,
};
