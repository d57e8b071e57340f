"""JSON with one thing changed, at random."""

import copy

VALUES = [
    *(None, True, False, 0, 1, -1, 2, 3, 4, 5, 8, 16, 10**30, 0.0, 0.5, 1.0, 4.0, 8.0, float("nan"), float("inf")),
    *("", "no", "true", "NM", "Grid", "Block", "dense", "absmax", "ema", "static", "tensor", "4"),
    *([], {}, [16, 16], [4.0, 16], ["x"], [1, 2, 3], {"set": "Grid", "bits": 4, "group": None, "scale": "mse"}),
]


def places(content):
    """Every container in the content, and a key of it."""
    for key, value in list(content.items() if isinstance(content, dict) else enumerate(content)):
        yield content, key
        if isinstance(value, dict | list):
            yield from places(value)


def mutated(content, random):
    """A copy in which a value is another, a little larger, gone, or at another place, or a key is new."""
    content = copy.deepcopy(content)
    found = list(places(content))
    container, key = random.choice(found)
    kind = random.choice(["change", "change", "nudge", "remove", "add", "swap"])
    if kind == "change":
        container[key] = copy.deepcopy(random.choice(VALUES))
    elif kind == "nudge":
        container, key = random.choice([(c, k) for c, k in found if type(c[k]) in (int, float, str)])
        container[key] += "x" if isinstance(container[key], str) else random.choice([1, container[key], -1])
    elif kind == "remove":
        del container[key]
    elif kind == "add":
        new = copy.deepcopy(random.choice(VALUES))
        container.append(new) if isinstance(container, list) else container.update({random.choice("ab"): new})
    else:
        other, place = random.choice([each for each in found if not isinstance(each[0][each[1]], dict | list)])
        container[key], other[place] = copy.deepcopy(other[place]), copy.deepcopy(container[key])
    return content


def same(one, other):
    """Whether two contents are the same, 1, 1.0 and true being three things, but that 1 may have become 1.0."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    kinds = (type(one), type(other))
    return one == other and (kinds[0] is kinds[1] or kinds == (int, float))
