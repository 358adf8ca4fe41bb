"""The reliability catalogue: what must be seen for every row that a test can be marked with.

``@pytest.mark.row("R-01")`` says that a test holds (a part of) row R-01. A row passes when it has
at least one marked test and every marked test that ran passed; ``pytest --catalogue`` prints it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

ROWS: dict[str, str] = {
    # Exact resume
    "R-01": "stopped anywhere in an epoch, a run ends with the bits of an unbroken one",
    "R-02": "`resume CKPT` and `train --resume CKPT` end with the same bits",
    "R-03": "three resumes, each from the one before, end with the same bits",
    "R-04": "resuming a finished run exits 0, says so and takes no step",
    "R-05": "how often a run evaluates and saves changes no weight",
    "R-06": "another width, depth or vocabulary is refused on resume with both values",
    "R-07": "a checkpoint holds every field a resumed run needs",
    "R-08": "early stopping ends at the same evaluation after a resume, with the same best",
    "R-09": "changed text is refused on resume, and there is a way to accept it",
    "R-10": "a resume with another batch size goes on at the exact position",
    "R-11": "the sequences before and after a resume join without repeat or gap",
    "R-12": "the log after a resume: steps increase, none twice, the learning rate joins",
    "R-13": "a checkpoint kept from an earlier build loads; one of a later format is refused",
    "R-14": "whichever saved field is lost or stale, the comparison of R-01 notices",
    # Determinism
    "X-01": "the same seed gives the same bits, whatever PYTHONHASHSEED is",
    "X-02": "another seed gives other bits",
    "X-03": "a batch split another way: the same weights and moments up to rounding",
    "X-04": "one rank and two ranks of the same global batch agree",
    "X-05": "one thread and two threads agree within the written tolerance",
    "X-06": "two processes side by side write the bits each writes alone",
    "X-07": "the order of the data does not depend on who asks for it, or when",
    # Crashes, signals, disk
    "C-01": "killed at any moment, every checkpoint that looks finished loads and goes on exactly",
    "C-02": "SIGTERM and SIGINT save, name the step, exit 143 and 130, and leave no temporary file",
    "C-03": "a full disk is refused cleanly and leaves earlier checkpoints as they were",
    "C-04": "a cut checkpoint is refused by every command, by name, without torch's advice",
    "C-05": "a flipped bit is noticed or changes nothing",
    "C-06": "a missing checkpoint is named",
    "C-07": "an output directory that cannot be written is refused before training",
    "C-08": "a second run in a directory in use is refused; the first ends with the right bits",
    "C-09": "training into a directory that holds a run is refused and changes nothing",
    "C-10": "divergence stops with the step named; every saved weight is finite",
    "C-11": "the highest step is the newest, whatever the file times say",
    "C-12": "a second Ctrl-C exits at once and leaves the old checkpoint intact",
    "C-13": "stray names in a run directory are passed over",
    "C-14": "with the newest checkpoint damaged, the one before it is used and named",
    "C-15": "saving writes, syncs, renames and syncs the directory in that order, manifest last",
    "C-16": "rotation keeps the best; a file that cannot be deleted is only a warning",
    "C-17": "a step beyond memory is refused before the first checkpoint, with a smaller batch",
    "C-18": "a closed stdout or stderr ends the program quietly",
    "C-19": "a closed terminal (SIGHUP) saves and exits 129; an ignored SIGHUP stays ignored",
    "C-20": "a start that ended before its first checkpoint can be started again",
    "C-21": "a run directory that vanishes while training is made again, and the run goes on",
    "C-22": "what memory cannot hold is refused from the config before anything is allocated",
    "C-23": "a step is taken by every parameter or by none, whichever gradient overflows",
    # Hostile files
    "S-01": "our checkpoint loads with weights_only and no added globals",
    "S-02": "a checkpoint that carries a call runs nothing and is refused",
    "S-03": "a small file that would unpack to gigabytes is refused in little memory",
    "S-04": "member names that point outside write nothing there",
    "S-05": "a malformed safetensors file is refused in little memory, whatever reads it",
    "S-06": "program text given as data is never run",
    "S-07": "a tensor of another shape or stride than the model's is refused without allocating it",
    "S-08": "links in a run directory are not followed to write or delete",
    "S-09": "random mutations of a checkpoint are refused or change nothing; no process dies",
    "S-10": "the source holds no unsafe load, eval or shell",
    "S-11": "no secret of the environment reaches a run's files or logs",
    # Configuration
    "K-01": "a mistyped key is refused with the nearest valid one, and nothing is created",
    "K-02": "17 wrong types and ranges are refused together, each by its key",
    "K-03": "17 malformed YAML files are each refused cleanly, by line where there is one",
    "K-04": "1e-4 is a number",
    "K-05": "`--set` without a value, without a key, unknown or on a section is refused",
    "K-06": "a missing file, no arguments and an unknown command are usage errors",
    "K-07": "training again from a run's stored config gives the same bits",
    "K-08": "every shipped config is valid and trains for two steps",
    "K-09": "YAML's surprises (no, 010, 1:30, .nan, dates, ~) are refused or taken as written",
    # Data
    "D-01": "missing, empty, blank, short, binary or misplaced text is refused by name",
    "D-02": "a hub data set without network or cache is refused in seconds, with the ways out",
    "D-03": "line ends, byte order mark, giant line, missing last newline: treated as documented",
    "D-04": "without validation text there is no evaluation, and the program says so",
    "D-05": "ids never wrap, and a tokenizer larger than the model is refused",
    "D-06": "training text inside the validation text is a warning that says how much",
    # Evaluation
    "E-01": "evaluating twice, by either name, gives the same digits and touches no file",
    "E-02": "perplexity does not depend on the batch size",
    # Generation
    "G-01": "the same seed gives the same text, another seed another",
    "G-02": "temperature 0 and top-k 1 give one text for every seed",
    "G-03": "extreme but legal options generate",
    "G-04": "illegal options are refused by name",
    "G-05": "nothing to generate, top-p 0 and top-k 0 are defined or refused",
    "G-06": "any prompt gives text or a clean refusal",
    "G-07": "stdout carries the text only",
    "G-08": "a reader that closes early is no error",
    "G-09": "weights that are not finite are refused, greedy or not",
    "G-10": "decoding with and without the cache gives the same ids, also past the context",
    "G-11": "the repetition penalty follows its definition to the digit",
    # Operation
    "O-01": "waiting threads leave their cores to other programs, and busy cores are told",
}

# Rows that cannot hold yet, and why.
WAITING: dict[str, str] = {}


def summarise(outcomes: Iterable[tuple[str, str]]) -> tuple[list[str], int]:
    """The table of the catalogue and how many rows pass.

    Args:
        outcomes: (row, "passed" | "failed" | "skipped") of every marked test that ran.
    """
    counts = {row: Counter[str]() for row in ROWS}
    for row, outcome in outcomes:
        counts[row][outcome] += 1
    lines, passing = [f"{'row':5} {'passed':>6} {'failed':>6} {'skipped':>7}  what is seen"], 0
    for row, text in ROWS.items():
        count = counts[row]
        passing += count["passed"] > 0 and not count["failed"]
        numbers = f"{count['passed']:6} {count['failed']:6} {count['skipped']:7}"
        waiting = f" (waiting: {WAITING[row]})" if row in WAITING else ""
        lines.append(f"{row:5} {numbers}  {text}{waiting}")
    lines.append(f"rows passing: {passing} of {len(ROWS)}")
    return lines, passing
