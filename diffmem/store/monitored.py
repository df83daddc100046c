"""The runs of a monitored training: of one training set with one set of settings, the newest is on the curve."""

import duckdb

EARLIER_RUNS = """
    UPDATE study_cells
    SET curve = concat_ws(', ', nullif(study_cells.curve, ''), label), name = concat_ws(', ', study_cells.name, label)
    FROM (
        SELECT study, position, study_cells.curve,
            coalesce('run of ' || (configuration->>'$.run')[:23] || ' UTC', 'earlier run') AS label,
            row_number() OVER (
                PARTITION BY study, configuration->'$.P',
                    list_sort(map_entries(from_json(configuration->'$.settings', '"MAP(VARCHAR, JSON)"')))
                ORDER BY configuration->>'$.run' DESC NULLS LAST
            ) AS age
        FROM study_cells JOIN studies USING (study) JOIN cells USING (cell_id) WHERE kind = 'monitor'
    ) AS run
    WHERE (study_cells.study, study_cells.position) = (run.study, run.position)
        AND age > 1 AND NOT ends_with(run.curve, label)
"""
"""SQL that puts every run but the newest on a curve of its own. An older diffmem did not number runs by their time."""


def part_earlier_runs(connection: duckdb.DuckDBPyConnection) -> None:
    """Put what is not the newest run of a monitored training on a curve of its own, so that no mean is over runs of
    which one may have been given up."""
    connection.execute(EARLIER_RUNS)
