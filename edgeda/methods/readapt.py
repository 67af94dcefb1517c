"""Going on from a finished run: its student and teacher adapt to another target (`edgeda adapt --from`)."""

from __future__ import annotations

from dataclasses import replace

from edgeda.artifacts import RunDirectory
from edgeda.methods.base import Stage
from edgeda.methods.source_only import unchanged_reference

ROLES = ("student", "teacher")
"""Whose selected weights a run goes on with."""


def trained_roles(planned: list[Stage]) -> list[str]:
    """Those of ROLES that some stage trains."""
    return [role for role in ROLES if any(role in stage.trains for stage in planned)]


def continued(planned: list[Stage], run: RunDirectory) -> list[Stage]:
    """The same stages, beginning with the networks of `run`.

    The reference is no longer a source-only student but the run's own student as it is: what is deployed now, and
    what would stay if nothing were done.
    """
    starts = {role: run.weights(role) for role in trained_roles(planned)}
    reference = replace(
        unchanged_reference(run.weights("student")), starts_from={"source_only": run.weights("student"), **starts}
    )
    return [reference, *(stage for stage in planned if "source_only" not in stage.trains)]
