"""The tables of the store, as the list of changes that have made them."""

from collections.abc import Callable
from pathlib import Path

import duckdb

from diffmem.store.renaming import to_version_2

Migration = str | Callable[[duckdb.DuckDBPyConnection, Path | None], None]
"""SQL, or what changes a store over its connection, and its files beside a path."""

MIGRATIONS: list[Migration] = [
    """
    CREATE TABLE cells (
        cell_id VARCHAR PRIMARY KEY,
        configuration JSON NOT NULL,       -- P, M, T, score, every default written out
        checkpoints INTEGER NOT NULL,      -- how many a finished cell has
        created_at TIMESTAMP NOT NULL
    );
    CREATE TABLE studies (
        study VARCHAR PRIMARY KEY,         -- the file's name without .toml, and @profile
        title VARCHAR NOT NULL,
        figure VARCHAR NOT NULL,
        path VARCHAR NOT NULL,
        axes JSON NOT NULL,                -- the keys of each axis
        estimation JSON NOT NULL,          -- [emm]
        registered_at TIMESTAMP NOT NULL
    );
    CREATE TABLE study_cells (
        study VARCHAR NOT NULL,
        position INTEGER NOT NULL,
        cell_id VARCHAR NOT NULL,          -- two positions may be the same cell, on two curves
        curve VARCHAR NOT NULL,            -- the axis values that tell one EMM curve from another
        name VARCHAR NOT NULL,             -- all axis values
        axis_values JSON NOT NULL,
        PRIMARY KEY (study, position)
    );
    CREATE TABLE attempts (
        attempt_id VARCHAR PRIMARY KEY,
        cell_id VARCHAR NOT NULL,
        outcome VARCHAR NOT NULL,          -- running, finished, interrupted, failed, lost
        error VARCHAR,
        started_at TIMESTAMP NOT NULL,
        ended_at TIMESTAMP,
        host VARCHAR NOT NULL,
        pid INTEGER NOT NULL,
        device VARCHAR NOT NULL,
        versions JSON NOT NULL,
        git_commit VARCHAR,
        git_dirty BOOLEAN
    );
    CREATE TABLE checkpoints (
        cell_id VARCHAR NOT NULL,
        epoch INTEGER NOT NULL,
        step BIGINT NOT NULL,
        samples INTEGER NOT NULL,          -- images generated
        memorized INTEGER NOT NULL,        -- of them, d1 < d2 / 3
        ratio DOUBLE NOT NULL,             -- memorized / samples
        loss DOUBLE,                       -- mean training loss per image since the last checkpoint
        train_seconds DOUBLE NOT NULL,
        score_seconds DOUBLE NOT NULL,
        attempt_id VARCHAR NOT NULL,
        measured_at TIMESTAMP NOT NULL,
        PRIMARY KEY (cell_id, epoch)
    );
    CREATE TABLE evidence (
        cell_id VARCHAR NOT NULL,
        epoch INTEGER NOT NULL,
        sample INTEGER NOT NULL,           -- number of the generated image
        nearest INTEGER NOT NULL,          -- position of its nearest image in the training set
        d1 DOUBLE NOT NULL,                -- l2 distance to it, on the 0..255 scale
        d2 DOUBLE NOT NULL                 -- l2 distance to the second nearest
    );
    CREATE TABLE pairs (
        cell_id VARCHAR NOT NULL,
        epoch INTEGER NOT NULL,
        sample INTEGER NOT NULL,
        generated BLOB NOT NULL,           -- PNG
        nearest BLOB NOT NULL,             -- PNG
        PRIMARY KEY (cell_id, epoch, sample)
    );
    CREATE VIEW results AS
        SELECT study, position, curve,
            CAST(configuration->>'$.P.size' AS INTEGER) AS size,
            configuration->>'$.P.draw' AS draw,
            CAST(configuration->>'$.T.seed' AS BIGINT) AS seed,
            cell_id, epoch, samples, memorized, ratio, loss
        FROM study_cells JOIN cells USING (cell_id) JOIN checkpoints USING (cell_id)
    """,
    """
    CREATE TABLE copied (                  -- pictures of what a checkpoint of the cell copied most
        cell_id VARCHAR NOT NULL,
        nearest INTEGER NOT NULL,          -- position in the training set
        picture BLOB NOT NULL,             -- PNG
        PRIMARY KEY (cell_id, nearest)
    )
    """,
    """
    ALTER TABLE studies ADD COLUMN overrides JSON DEFAULT '[]'; -- what --set has changed of the file, as it was given
    ALTER TABLE studies ADD COLUMN folder VARCHAR               -- where `path` begins if it is relative
    """,
    """
    CREATE TABLE notes (                   -- what was done to the images of a cell when they were read
        cell_id VARCHAR NOT NULL,
        note VARCHAR NOT NULL,             -- one sentence, with its count
        PRIMARY KEY (cell_id, note)
    )
    """,
    to_version_2,  # which adds cells.results_version, the version of diffmem's results that the numbers are of
    """
    ALTER TABLE studies ADD COLUMN kind VARCHAR DEFAULT 'trained';  -- trained, images, monitor
    UPDATE studies SET kind = CASE WHEN path = 'diffmem.Monitor' THEN 'monitor' ELSE 'images' END
        WHERE study IN (
            SELECT study FROM study_cells JOIN cells USING (cell_id)
            GROUP BY study
            HAVING NOT bool_or(CASE WHEN json_valid(configuration) THEN json_exists(configuration, '$.M') ELSE true END)
        )
    """,
    """
    CREATE TABLE measurements (            -- what other measures than the paper's have found
        cell_id VARCHAR NOT NULL,
        epoch INTEGER NOT NULL,
        measure VARCHAR NOT NULL,          -- calibrated, ...
        value DOUBLE NOT NULL,             -- share of copies at the measure's own threshold
        low DOUBLE NOT NULL,               -- its 95% Wilson interval
        high DOUBLE NOT NULL,
        n INTEGER NOT NULL,                -- images behind it
        PRIMARY KEY (cell_id, epoch, measure)
    );
    CREATE TABLE measure_evidence (        -- of each image: a copy where distance < threshold * yardstick
        cell_id VARCHAR NOT NULL,
        epoch INTEGER NOT NULL,
        measure VARCHAR NOT NULL,
        sample INTEGER NOT NULL,           -- number of the generated image, as in evidence
        nearest INTEGER NOT NULL,          -- position in the training set of the image that it would be a copy of
        distance DOUBLE NOT NULL,
        yardstick DOUBLE NOT NULL
    );
    CREATE VIEW measured AS                -- every checkpoint by every measure, the paper's too
        SELECT cell_id, epoch, 'nearest' AS measure, ratio AS value,
            -- Wilson's 95% interval, with z = 1.959963984540054
            CASE WHEN memorized = 0 THEN 0.0 ELSE centre - width END AS low,
            CASE WHEN memorized = samples THEN 1.0 ELSE centre + width END AS high,
            samples AS n
        FROM (
            SELECT *, (memorized + zz / 2) / (samples + zz) AS centre,
                sqrt(zz * (memorized::DOUBLE * (samples - memorized) / samples + zz / 4)) / (samples + zz) AS width
            FROM (SELECT *, 3.8414588206941254 AS zz FROM checkpoints)
        )
        UNION ALL
        FROM measurements
    """,
    """
    CREATE TABLE held_out (                -- evidence of images that were not trained on: the null
        training_set VARCHAR NOT NULL,     -- md5 of a cell's P; the cell_id where only that knows its images
        measure VARCHAR NOT NULL,
        sample INTEGER NOT NULL,           -- number of the held-out image
        nearest INTEGER NOT NULL,          -- position in the training set
        distance DOUBLE NOT NULL,
        yardstick DOUBLE NOT NULL
    )
    """,
    """
    CREATE TABLE noise_levels (            -- what measures of a denoiser have found, one row a noise level
        cell_id VARCHAR NOT NULL,
        epoch INTEGER NOT NULL,
        measure VARCHAR NOT NULL,          -- gaps, membership, ...
        quantity VARCHAR NOT NULL,         -- loss, loss_gap, ...
        images VARCHAR NOT NULL,           -- training, held_out, both: those that it is of
        sigma DOUBLE NOT NULL,             -- the noise level
        value DOUBLE NOT NULL,
        low DOUBLE NOT NULL,               -- its 95% interval over images
        high DOUBLE NOT NULL,
        n INTEGER NOT NULL                 -- images behind it
    )
    """,
    """
    CREATE TABLE training_images (         -- what each training image is like
        training_set VARCHAR NOT NULL,     -- as in held_out
        position INTEGER NOT NULL,         -- in the training set
        image VARCHAR NOT NULL,            -- its dataset and its position there, as `diffmem audit` has it
        alike INTEGER NOT NULL,            -- training images of its group, with it: 1 where it has no group
        local_distance DOUBLE NOT NULL     -- mean l2 distance to its 5 nearest other training images
    )
    """,
    """
    CREATE TABLE spaces (                  -- feature spaces: what the name of a measure stands for
        measure VARCHAR PRIMARY KEY,       -- the space's name
        features VARCHAR NOT NULL,         -- as declared, a file without its folder
        content VARCHAR NOT NULL,          -- hash of the file, the weights, or the function's source
        resize VARCHAR NOT NULL,
        pixels VARCHAR NOT NULL,           -- 0..255, 0..1, imagenet
        rule VARCHAR NOT NULL,             -- similarity, nearest
        threshold DOUBLE NOT NULL,         -- a similarity, or a share of the second nearest distance
        dimensions INTEGER NOT NULL        -- numbers of an image's features
    )
    """,
    """
    CREATE TABLE quality (                 -- generated images of a checkpoint beside real ones, as distributions
        cell_id VARCHAR NOT NULL,
        epoch INTEGER NOT NULL,
        space VARCHAR NOT NULL,            -- feature space: pixels, ...
        quantity VARCHAR NOT NULL,         -- frechet_distance, precision, ...
        against VARCHAR NOT NULL,          -- training, held_out: the real images
        value DOUBLE NOT NULL,
        low DOUBLE NOT NULL,               -- its 95% interval over images
        high DOUBLE NOT NULL,
        n INTEGER NOT NULL,                -- generated images
        real INTEGER NOT NULL,             -- real images
        dimensions INTEGER NOT NULL,       -- of the space
        null_value DOUBLE,                 -- the same of new real images in the place of the generated ones
        null_n INTEGER NOT NULL            -- new real images
    )
    """,
    """
    CREATE TABLE halves (                  -- images of the models of two halves (P.half) from the same latent
        cell_a VARCHAR NOT NULL,           -- the cell of half a
        cell_b VARCHAR NOT NULL,
        epoch INTEGER NOT NULL,
        space VARCHAR NOT NULL,            -- where images are compared: centred pixels, ...
        sample INTEGER NOT NULL,           -- number of the generated image, as in evidence
        similarity DOUBLE NOT NULL,        -- cosine of the two images
        mse DOUBLE NOT NULL,               -- mean squared difference on 0..1
        mismatched DOUBLE,                 -- cosine of half a's image and half b's of another latent: the null
        mismatched_mse DOUBLE,
        nearest_a DOUBLE NOT NULL,         -- largest cosine of half a's image to its training images
        nearest_b DOUBLE NOT NULL,
        held_out_a DOUBLE,                 -- largest cosine of held-out image `sample` to these: the null
        held_out_b DOUBLE
    )
    """,
    """
    CREATE OR REPLACE VIEW results AS
        SELECT study, position, curve,
            CAST(configuration->>'$.P.size' AS INTEGER) AS size,
            configuration->>'$.P.draw' AS draw,
            CAST(configuration->>'$.T.seed' AS BIGINT) AS seed,
            cell_id, epoch, samples, memorized, ratio, loss,
            axis_values AS axes                -- the value on each axis: axes->>'M.width'
        FROM study_cells JOIN cells USING (cell_id) JOIN checkpoints USING (cell_id)
    """,
    """
    ALTER TABLE pairs ADD COLUMN second BLOB;            -- PNG of the second nearest training image
    ALTER TABLE pairs ADD COLUMN second_nearest INTEGER; -- its position in the training set
    ALTER TABLE pairs ADD COLUMN name VARCHAR;           -- of the generated image, if another tool made it: its file
    ALTER TABLE pairs ADD COLUMN copy_of VARCHAR;        -- the mirrored, shifted or doubled image that it is a copy of
    ALTER TABLE training_images ALTER COLUMN local_distance DROP NOT NULL; -- which a score does not measure
    """,
]
"""Append only. Each runs in one transaction with its record."""


def apply(connection: duckdb.DuckDBPyConnection, migration: Migration, path: Path | None = None) -> None:
    """Do what a migration does, to the store at `path` if it has files beside it."""
    if callable(migration):
        migration(connection, path)
    else:
        connection.execute(migration)
