"""What the name of a feature space stands for: one space in a store, so that no evidence is mixed."""

from dataclasses import asdict

from diffmem.measures import SpaceIdentity

NAMED = {
    "content": "the content of its features (file, weights or source) is another one",
    "resize": "resize was {had!r}, now {now!r}",
    "pixels": "pixels was {had!r}, now {now!r}",
    "rule": "rule was {had!r}, now {now!r}",
    "threshold": "threshold was {had:g}, now {now:g}",
    "dimensions": 'its features had {had} numbers, now {now}; resize = "square S" makes images of all sizes alike',
}
"""In what two spaces of one name can differ, and how that is said."""


def another_space(had: SpaceIdentity, now: SpaceIdentity) -> str:
    """Say in what a space is another one than the store's of the same name; empty if it is the same one."""
    old, new = asdict(had), asdict(now)
    said = [text.format(had=old[key], now=new[key]) for key, text in NAMED.items() if old[key] != new[key]]
    if not said:
        return ""
    advice = f"give this one another name, as {now.measure}-2, or use another --store"
    return f"the space {now.measure} is not the one that was measured there: {', '.join(said)}; {advice}"
