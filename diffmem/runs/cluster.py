"""A study on a cluster: each cell a Ray task, its rows appended by this process, the only one that has the store."""

from collections import deque
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial

import torch

from diffmem.models import Group
from diffmem.runs.cluster_driver import Cluster, Driver
from diffmem.runs.cluster_task import Origin
from diffmem.runs.events import CellEnded, Ended, Event, Noted
from diffmem.runs.ray_cluster import connected
from diffmem.runs.spaces import check_spaces
from diffmem.runs.stopping import Stop, end_if
from diffmem.runs.waiting import Options, Rounds, begin, costliest_first, settled_cells
from diffmem.runs.workplace import Workplace
from diffmem.store import Store
from diffmem.study import Study, StudyCell


def run_on_cluster(
    study: Study, store: Store, cluster: Cluster, *, stop: Stop = lambda: False, options: Options = Options()
) -> Iterator[Event]:
    """Train and score every cell of a study on a cluster, and yield an event for all that happens, as `run_study` does.

    This process appends the rows of all cells as they come. A cell whose node dies goes on elsewhere from its last
    saved state. When `stop` returns True, all cells save their states, and Interrupted is raised. Raises DataError if
    images cannot be read here, StoreError if the store cannot be used, and RunError if the cluster cannot, or a node
    has another diffmem or does not reach `work`.
    """
    identities = check_spaces(study, store.waiting(partial(end_if, stop)), Group(device=torch.device("cpu")))
    origin = Origin.here(study.spaces.values(), identities)
    with (
        connected(cluster.address) as ray,
        closing(Workplace.opened(cluster.work, store.path)) as place,
        closing(Driver(ray, study, store, place, origin, cluster, options, stop)) as driver,
    ):
        yield driver.size()
        yield from _search(driver) if study.estimation.search == "bisect" else _all(driver)
        driver.raise_if_ended()


def _all(driver: Driver) -> Iterator[Event]:
    """Train all cells of a study, the costliest first."""
    study, store, options = driver.study, driver.store, driver.options
    yield from begin(study, store)
    settled = settled_cells(study, store, options)
    left_behind = driver.place.cells()
    for entry in study.distinct:
        if outcome := settled.get(entry.cell.cell_id):
            if outcome is Ended.ALREADY and entry.cell.cell_id in left_behind:
                driver.place.remove_all(entry.cell.cell_id)
            yield CellEnded(entry, outcome)
    queue = deque(costliest_first([entry for entry in study.distinct if entry.cell.cell_id not in settled]))
    while driver.tasks or (queue and not driver.ends()):
        while queue and driver.has_room() and not driver.ends():
            entry = queue.popleft()
            if refused := driver.submit(entry):
                yield CellEnded(entry, refused)
        yield from driver.step()


def _search(driver: Driver) -> Iterator[Event]:
    """Train what the search for the EMM of every curve needs next, until none needs anything."""
    rounds, number = Rounds(driver.study, driver.store, driver.options), 0
    looks_again = True
    while not driver.ends() and (looks_again or driver.tasks):
        looks_again, said, wanted = False, list[Noted](), list[StudyCell]()
        with driver.failing():
            said, wanted = rounds.next()
        yield from said
        for entry in wanted:
            if entry.cell.cell_id in driver.cells() or not driver.has_room():
                continue
            number += 1
            numbered = replace(entry, number=number)
            if refused := driver.submit(numbered):
                looks_again = looks_again or refused is Ended.ALREADY
                if refused is not Ended.ALREADY:
                    rounds.left_out.add(entry.cell.cell_id)
                with driver.failing():
                    rounds.ended(CellEnded(numbered, refused))
                yield CellEnded(numbered, refused)
        while driver.tasks and not looks_again:
            for event in driver.step():
                yield event
                if isinstance(event, CellEnded):
                    looks_again = True
                    with driver.failing():
                        rounds.ended(event)
    while driver.tasks:
        yield from driver.step()
