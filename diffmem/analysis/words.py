"""Settings in the words that a paper would use: "no labels", not "M.condition = none"."""

import re

LABELS = {"none": "no labels", "true": "true labels", "random": "random labels", "unique": "a label per image"}
"""What images are conditioned on, by M.condition."""
PHRASES = {
    "M.embedding": "{} embedding",
    "M.labels": "{} labels",
    "M.network": "{}",
    "P.dataset": "{}",
    "P.size": "N = {}",
    "P.resolution": "{0}x{0} pixels",
    "T.ema": "EMA {}",
    "T.epochs": "{} epochs",
    "T.lr": "learning rate {}",
}
"""How a setting is said whose name is no good phrase."""
COUNTED = {"M.blocks": ("block", "blocks"), "P.classes": ("class", "classes")}
SETTING = re.compile(r"([PMT]\.[\w.]+) = (.*)")


def typeset(text: str) -> str:
    """Return a text of a terminal as a page has it: `≥ 24` in the place of `>= 24`."""
    return text.replace(">=", "≥").replace("<=", "≤")


def in_words(label: str) -> str:
    """Return the label of a curve or a cell in words; as it is unless it is of settings alone, `key = value, ...`."""
    found = [SETTING.fullmatch(part) for part in label.split(", ")]
    if not all(found):
        return label
    return ", ".join(said(each[1], each[2]) for each in found if each)


def said(key: str, value: str) -> str:
    """Return one setting in words."""
    if key == "M.condition":
        return LABELS.get(value, f"{value} labels")
    if key in COUNTED:
        return f"{value} {COUNTED[key][value != '1']}"
    name = key.rpartition(".")[2].replace("_", " ")
    return PHRASES.get(key, f"{name} {{}}").format(value)
