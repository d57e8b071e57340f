"""The embedded task: does the premise entail the hypothesis, in English sentences that a small grammar writes.

Nothing is downloaded and no label is noisy: a label follows from the rule that wrote the pair, so a perfect reader
scores 100 %. The six phenomena are, with an entailed and a not entailed hypothesis each (separated by `/`):

agreement     The nurse behind the boys who were tired was laughing. -> The boys were tired. / The boys were laughing.
              The number of each verb tells, across the other noun, which of the two it is about.
negation      It is false that the tailor who the boy did not admire moved the box. -> The tailor did not move the box.
              / The tailor moved the box. Negations cancel out in pairs; one in a relative clause does not count.
monotonicity  No dogs chased nurses. -> No poodles chased nurses. / No dogs chased people.
              Each quantifier lets its noun and its predicate only be narrowed or only be widened.
antonymy      The box that the nurse wanted was not open. -> The box was closed. / The box was not closed.
              Complements (open, closed) leave no third state; contraries (hot, cold) do: what is not hot may be mild.
implication   The driver who the girl called did not forget to lock the gate. -> The driver locked the gate. / The
              driver did not lock the gate. The verb's own polarity and the negations combine; `hope` implies nothing.
coordination  It is not true that the judge or the sailor danced in the park. -> The judge did not dance. / The judge
              danced. A denied `or` is a `neither ... nor`; a denied `and` leaves each of the two open.

The minimal pairs and the balance per phenomenon follow BLiMP (Warstadt et al. 2020, arXiv 1912.00582), the word overlap
that must not help follows HANS (McCoy et al. 2019, arXiv 1902.01007), and the narrowing and widening under quantifiers
follow MED (Yanaka et al. 2019, arXiv 1906.06448).
"""

import dataclasses
import random
from collections.abc import Callable

import datasets

from nxmiformer.tasks.labelled import LabelledTexts

PEOPLE = "actor baker boy doctor driver farmer girl judge lawyer nurse painter sailor singer student tailor teacher"
MOODS = "angry busy calm hungry lonely proud sad thirsty tired worried"
POSITIONS = "behind beside near opposite"
PLACES = "barn forest garden market meadow park station village"
SIGHTING = "avoided chased feared noticed passed watched"
OWNING = "borrowed bought chose guarded owned sold stored wanted"
THINGS = "box cabinet case chest cupboard door drawer gate locker trunk wardrobe window"

# Verbs as (base, past). Those of MEETING are regular: the participle of each is its past.
PROGRESSIVE = "coughing crying dancing frowning laughing resting shouting smiling waiting yawning"
INTRANSITIVE = [("cough", "coughed"), ("cry", "cried"), ("dance", "danced"), ("frown", "frowned"), ("laugh", "laughed")]
INTRANSITIVE += [("rest", "rested"), ("shout", "shouted"), ("smile", "smiled"), ("wait", "waited"), ("yawn", "yawned")]
MEETING = [("admire", "admired"), ("blame", "blamed"), ("call", "called"), ("follow", "followed")]
MEETING += [("help", "helped"), ("praise", "praised"), ("thank", "thanked"), ("visit", "visited")]
HANDLING = [("clean", "cleaned"), ("lock", "locked"), ("move", "moved"), ("open", "opened"), ("paint", "painted")]
HANDLING += [("polish", "polished"), ("repair", "repaired"), ("wash", "washed")]

# A verb with an infinitive, and whether its complement came true: when asserted, when negated; None: it may or may not.
IMPLICATIVES: dict[tuple[str, str], tuple[bool | None, bool | None]] = {
    ("manage", "managed"): (True, False),
    ("remember", "remembered"): (True, False),
    ("bother", "bothered"): (True, False),
    ("fail", "failed"): (False, True),
    ("forget", "forgot"): (False, True),
    ("neglect", "neglected"): (False, True),
    ("refuse", "refused"): (False, None),
    ("hope", "hoped"): (None, None),
}

COMPLEMENTS = ["open closed", "present absent", "visible invisible", "real fake"]
CONTRARIES = ["hot cold", "heavy light", "old new", "big small"]

KINDS = {
    "dogs": "poodles beagles terriers spaniels",
    "birds": "sparrows robins crows eagles",
    "insects": "beetles ants moths wasps",
    "snakes": "cobras vipers pythons adders",
    "monkeys": "baboons macaques capuchins mandrills",
}
LOOKS = "black brown hungry noisy old young"

# A quantifier, and whether its noun, then its predicate, may be widened (otherwise: narrowed).
QUANTIFIERS = {
    "some": (True, True),
    "at least two": (True, True),
    "all": (False, True),
    "not all": (True, False),
    "no": (False, False),
    "at most two": (False, False),
}

FUNCTION_WORDS = ". and did false in is it neither nor not or people that the to true was were who"

Rule = Callable[[random.Random, bool], tuple[str, str]]


def _sentence(*parts: str) -> str:
    """The parts that are not empty as a sentence: a capital first, a full stop last."""
    text = " ".join(part for part in parts if part)
    return text[0].upper() + text[1:] + "."


def _verb(forms: tuple[str, str], affirmed: bool) -> str:
    """The verb in the past tense, negated unless `affirmed`."""
    return forms[1] if affirmed else f"did not {forms[0]}"


def _people(rng: random.Random, count: int) -> list[str]:
    """`count` different persons, each with its article."""
    return [f"the {person}" for person in rng.sample(PEOPLE.split(), count)]


def _frame(rng: random.Random) -> tuple[str, bool]:
    """The beginning of a sentence that asserts or denies the rest, and whether it asserts it; often empty."""
    if rng.random() < 0.5:
        return "", True
    asserted, truth = rng.random() < 0.5, rng.random() < 0.5
    return f"it is {'' if asserted else 'not '}{'true' if truth else 'false'} that", asserted == truth


def agreement(rng: random.Random, entails: bool) -> tuple[str, str]:
    """Two verbs that only their number attaches to the near or the far noun: one in a relative clause, the main one."""
    copulas = rng.sample(["was", "were"], 2)
    head, attractor = (noun + "s" * (be == "were") for noun, be in zip(_people(rng, 2), copulas, strict=True))
    position, mood, action, place = (rng.choice(words.split()) for words in (POSITIONS, MOODS, PROGRESSIVE, PLACES))
    relative = rng.choice(copulas)
    premise = _sentence(head, position, attractor, "who", relative, mood, copulas[0], action, "in the", place)
    claim, be = rng.choice([(mood, relative), (action, copulas[0])])
    subject = head if (be == copulas[0]) == entails else attractor
    return premise, _sentence(subject, "were" if subject.endswith("s") else "was", claim)


def negation(rng: random.Random, entails: bool) -> tuple[str, str]:
    """Negations that each turn the truth round, and one in a relative clause that does not."""
    frame, asserted = _frame(rng)
    affirmed, met = rng.random() < 0.5, rng.random() < 0.5
    subject, other = _people(rng, 2)
    handle, thing = rng.choice(HANDLING), "the " + rng.choice(THINGS.split())
    relative = f"who {other} {_verb(rng.choice(MEETING), met)}"
    premise = _sentence(frame, subject, relative, _verb(handle, affirmed), thing)
    return premise, _sentence(subject, _verb(handle, (asserted == affirmed) == entails), thing)


def monotonicity(rng: random.Random, entails: bool) -> tuple[str, str]:
    """One place of a quantified sentence is widened or narrowed, with or against what the quantifier lets pass."""
    quantifier = rng.choice(list(QUANTIFIERS))
    subject = rng.choice(list(KINDS))
    narrow = {
        "look": rng.choice(LOOKS.split()),
        "subject": rng.choice(KINDS[subject].split()),
        "target": rng.choice(PEOPLE.split()) + "s",
        "place": "in the " + rng.choice(PLACES.split()),
    }
    wide = {"look": "", "subject": subject, "target": "people", "place": ""}
    site = rng.choice(list(narrow))
    widened = QUANTIFIERS[quantifier][site in ("target", "place")] == entails
    both = {"look": "", "subject": narrow["subject"], "target": narrow["target"], "place": ""}
    premise = both | {site: (narrow if widened else wide)[site]}
    hypothesis = both | {site: (wide if widened else narrow)[site]}
    verb = rng.choice(SIGHTING.split())

    def write(parts: dict[str, str]) -> str:
        return _sentence(quantifier, parts["look"], parts["subject"], verb, parts["target"], parts["place"])

    return write(premise), write(hypothesis)


def antonymy(rng: random.Random, entails: bool) -> tuple[str, str]:
    """A thing is, or is not, as an adjective says; the hypothesis uses its antonym, or an unrelated adjective."""
    complement = rng.random() < 0.5
    pair = rng.choice(COMPLEMENTS if complement else CONTRARIES)
    word, opposite = rng.sample(pair.split(), 2)
    # What is not hot need not be cold: a denied contrary entails nothing about its antonym.
    affirmed = rng.random() < 0.5 if complement or not entails else True
    claimed = not affirmed
    if not entails:
        if rng.random() < 0.5 and (complement or affirmed):
            claimed = affirmed
        elif complement or affirmed:
            others = [other for other in COMPLEMENTS + CONTRARIES if other != pair]
            opposite = rng.choice(rng.choice(others).split())
    thing = "the " + rng.choice(THINGS.split())
    be, maybe = ("was" if yes else "was not" for yes in (affirmed, claimed))
    owner, owned = _people(rng, 1)[0], rng.choice(OWNING.split())
    return _sentence(thing, "that", owner, owned, be, word), _sentence(thing, maybe, opposite)


def implication(rng: random.Random, entails: bool) -> tuple[str, str]:
    """Whether the complement of a verb came true, given that verb and the negations above it."""
    frame, asserted = _frame(rng)
    affirmed = rng.random() < 0.5
    negated = affirmed != asserted
    verb = rng.choice([verb for verb, came in IMPLICATIVES.items() if not entails or came[negated] is not None])
    came = IMPLICATIVES[verb][negated]
    claimed = rng.random() < 0.5 if came is None else came == entails
    subject, other = _people(rng, 2)
    relative = f"who {other} {_verb(rng.choice(MEETING), rng.random() < 0.5)}"
    handle, thing = rng.choice(HANDLING), "the " + rng.choice(THINGS.split())
    premise = _sentence(frame, subject, relative, _verb(verb, affirmed), "to", handle[0], thing)
    return premise, _sentence(subject, _verb(handle, claimed), thing)


def coordination(rng: random.Random, entails: bool) -> tuple[str, str]:
    """Two persons joined by `and`, `or` or `neither ... nor`, asserted or denied; the hypothesis speaks of one."""
    first, second = _people(rng, 2)
    action, place = rng.choice(INTRANSITIVE), rng.choice(PLACES.split())
    frame, asserted = _frame(rng)
    # What holds of each of the two: asserted `and`, asserted `neither` and denied `or` tell, the others leave it open.
    tells = {"and": True, "neither": False} if asserted else {"or": False}
    joint = rng.choice(list(tells) if entails else ["and", "neither", "or"])
    claimed = tells[joint] == entails if joint in tells else rng.random() < 0.5
    pair = f"neither {first} nor {second}" if joint == "neither" else f"{first} {joint} {second}"
    hypothesis = _sentence(rng.choice([first, second]), _verb(action, claimed))
    return _sentence(frame, pair, action[1], "in the", place), hypothesis


PHENOMENA: dict[str, Rule] = {
    rule.__name__: rule for rule in (agreement, negation, monotonicity, antonymy, implication, coordination)
}

# Every rule writes more premises than this limit asks of it, so drawing new ones stays quick.
LIMIT = 10_000 * len(PHENOMENA)


@dataclasses.dataclass(frozen=True)
class Grammar(LabelledTexts):
    """Sentence pairs from the grammar above, half of them entailments in each split and each phenomenon.

    No premise occurs twice, in one split or in two. The same seed and sizes give the same splits; `validation` does not
    depend on the other two sizes, and `holdout` not on that of `train`.

    Args:
        train: number of training pairs; like the other sizes a positive multiple of 12 (six phenomena, two labels).
        holdout: number of pairs in the holdout, on which all choices are made.
        validation: number of pairs for the reported score.
        seed: seed of the generator.

    Raises:
        ValueError: a size is not a positive multiple of 12, or the sizes sum to more than `LIMIT`.
    """

    train: int = 24_000
    holdout: int = 1_200
    validation: int = 2_400
    seed: int = 0
    name: str = "grammar"

    columns = ("premise", "hypothesis")
    labels = ("entailment", "not_entailment")
    metric = "accuracy"

    def __post_init__(self) -> None:
        step = len(PHENOMENA) * len(self.labels)
        sizes = {"train": self.train, "holdout": self.holdout, "validation": self.validation}
        for split, size in sizes.items():
            if size < 1 or size % step:
                raise ValueError(f"{split} must be a positive multiple of {step} (phenomena x labels), not {size}")
        if sum(sizes.values()) > LIMIT:
            raise ValueError(f"train + holdout + validation must be at most {LIMIT}, not {sum(sizes.values())}")

    @property
    def vocabulary(self) -> tuple[str, ...]:  # type: ignore[override]
        """Every word that the grammar can write, in lower case and sorted, and the full stop."""
        words = {plural for person in PEOPLE.split() for plural in (person, person + "s")}
        for text in (MOODS, PROGRESSIVE, POSITIONS, PLACES, SIGHTING, OWNING, THINGS, LOOKS, FUNCTION_WORDS):
            words.update(text.split())
        for text in (*COMPLEMENTS, *CONTRARIES, *KINDS, *KINDS.values(), *QUANTIFIERS):
            words.update(text.split())
        for forms in (*INTRANSITIVE, *MEETING, *HANDLING, *IMPLICATIVES):
            words.update(forms)
        return tuple(sorted(words))

    def splits(self) -> datasets.DatasetDict:
        """The splits `train`, `holdout` and `validation`: premise, hypothesis, label and phenomenon, shuffled."""
        rng, seen = random.Random(self.seed), set[str]()
        drawn = {size: self._draw(rng, getattr(self, size), seen) for size in ("validation", "holdout", "train")}
        return datasets.DatasetDict({split: drawn[split] for split in ("train", "holdout", "validation")})

    def _draw(self, rng: random.Random, size: int, seen: set[str]) -> datasets.Dataset:
        """A split of `size` pairs with premises that are not in `seen`; adds them to it."""
        rows = []
        for phenomenon, rule in PHENOMENA.items():
            for index in range(size // len(PHENOMENA)):
                label = index % len(self.labels)
                premise, hypothesis = rule(rng, label == 0)
                while premise in seen:
                    premise, hypothesis = rule(rng, label == 0)
                seen.add(premise)
                rows.append({"premise": premise, "hypothesis": hypothesis, "label": label, "phenomenon": phenomenon})
        rng.shuffle(rows)
        text = datasets.Value("string")
        label_feature = datasets.ClassLabel(names=list(self.labels))
        features = {"premise": text, "hypothesis": text, "label": label_feature, "phenomenon": text}
        return datasets.Dataset.from_list(rows, features=datasets.Features(features))
