"""The paper's effects beside those measured, at each scale that a store has."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from diffmem.analysis.claims import FINDINGS, IMAGES, Claim, Finding
from diffmem.analysis.findings import Result, check_findings, effect_text, published_effect
from diffmem.analysis.other_papers import OTHER_PAPERS, OtherResult, check_other_papers
from diffmem.store import Store

PAPER_SCALE = "the paper's scale"
"""What studies without a profile are called."""


@dataclass(frozen=True)
class ClaimAtScales:
    """One claim of a finding, what the paper's own numbers give it, and what each scale does."""

    finding: Finding
    claim: Claim
    published: float | None
    results: Mapping[str, Result]  # by scale

    @property
    def name(self) -> str:
        """Return what tells it from all other claims."""
        return f"{self.finding.number}  {self.claim.text}"

    @property
    def paper(self) -> str:
        """Return what the paper's numbers give it, as text."""
        return effect_text(self.published, difference=self.claim.low is not None)


@dataclass(frozen=True)
class FindingsAtScales:
    """All claims at every scale of a store, and the verdict on each finding there."""

    scales: Sequence[str]
    claims: Sequence[ClaimAtScales]
    verdicts: Mapping[str, Mapping[int, str]]  # by scale and number of the finding
    others: Mapping[str, Sequence[OtherResult]]  # of other papers, by scale

    def counts(self, scale: str) -> Mapping[str, int]:
        """Return how many of the paper's findings have each verdict at a scale, the most first."""
        return dict(Counter(self.verdicts[scale].values()).most_common())


def findings_at_scales(store: Store) -> FindingsAtScales:
    """Return the findings at every scale in the store: the studies without a profile, then those of each profile."""
    about = {claim.study for finding in FINDINGS for claim in finding.claims} | {each.study for each in OTHER_PAPERS}
    found = (each.study.partition("@") for each in store.studies())
    profiles = {stem_profile[2] for stem_profile in found if stem_profile[0] in about}
    named = {profile or PAPER_SCALE: profile or None for profile in sorted(profiles)}
    checked = {scale: check_findings(store, profile) for scale, profile in named.items()}
    results = {
        (scale, finding.number, place): result
        for scale, rows in checked.items()
        for finding, _, of_finding in rows
        for place, result in enumerate(of_finding)
    }
    claims = [
        ClaimAtScales(
            finding,
            claim,
            None if claim.keys == IMAGES else published_effect(store, claim),
            {scale: results[scale, finding.number, place] for scale in named},
        )
        for finding in FINDINGS
        for place, claim in enumerate(finding.claims)
    ]
    verdicts = {scale: {finding.number: verdict for finding, verdict, _ in rows} for scale, rows in checked.items()}
    others = {scale: check_other_papers(store, profile) for scale, profile in named.items()}
    return FindingsAtScales(list(named), claims, verdicts, others)
