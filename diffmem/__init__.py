"""diffmem: does a diffusion model copy its training data, and up to how much data does it do so?

The names of `__all__` are the Python API; each is imported where it is first used, so `import diffmem` is quick.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diffmem.emm import estimate_emm
    from diffmem.errors import DiffmemError
    from diffmem.memorization import two_nearest
    from diffmem.merging import merge
    from diffmem.monitor import Monitor
    from diffmem.plan import plan_cells
    from diffmem.ratio import memorization_ratio
    from diffmem.report.estimates import study_curves
    from diffmem.report.findings import check_findings
    from diffmem.report.page import write_page
    from diffmem.runner import run_study
    from diffmem.scoring import score_images
    from diffmem.store import Store
    from diffmem.study import Study

__all__ = [
    "DiffmemError",
    "Monitor",
    "Store",
    "Study",
    "check_findings",
    "estimate_emm",
    "memorization_ratio",
    "merge",
    "plan_cells",
    "run_study",
    "score_images",
    "study_curves",
    "two_nearest",
    "write_page",
]

if not TYPE_CHECKING:  # a type checker would take every name for one that __getattr__ knows

    def __getattr__(name: str) -> object:
        """Import a name of the API."""
        match name:
            case "DiffmemError":
                from diffmem.errors import DiffmemError

                return DiffmemError
            case "Monitor":
                from diffmem.monitor import Monitor

                return Monitor
            case "Store":
                from diffmem.store import Store

                return Store
            case "Study":
                from diffmem.study import Study

                return Study
            case "check_findings":
                from diffmem.report.findings import check_findings

                return check_findings
            case "estimate_emm":
                from diffmem.emm import estimate_emm

                return estimate_emm
            case "memorization_ratio":
                from diffmem.ratio import memorization_ratio

                return memorization_ratio
            case "merge":
                from diffmem.merging import merge

                return merge
            case "plan_cells":
                from diffmem.plan import plan_cells

                return plan_cells
            case "run_study":
                from diffmem.runner import run_study

                return run_study
            case "score_images":
                from diffmem.scoring import score_images

                return score_images
            case "study_curves":
                from diffmem.report.estimates import study_curves

                return study_curves
            case "two_nearest":
                from diffmem.memorization import two_nearest

                return two_nearest
            case "write_page":
                from diffmem.report.page import write_page

                return write_page
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return the names of the API, for completion."""
    return sorted({*globals(), *__all__})
