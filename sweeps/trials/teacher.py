"""The teacher of a space, found and checked, and the section that it adds to a trial's specification.

A teacher belongs to a specification only where the recipe gives it a weight, so that studies with and without one
share their plain trials. Whether its outputs come live or from a cache does not belong there: they are the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from lowrank.compression import network_to_count
from lowrank.data import ImageData
from lowrank.distillation import (
    WEIGHTS_FILE,
    BuiltAs,
    Sizes,
    TeacherWeights,
    common_sizes,
    default_taps,
    find_teacher,
    is_bare,
    tap_sizes,
    teacher_from_weights,
)
from lowrank.errors import InputError
from lowrank.networks import ImageShape, NetworkSettings
from lowrank.training import Recipe
from sweeps.records import ITSELF, HeaderTeacher, TeacherSection, TrialSpec
from sweeps.space import START, TEACHER_WEIGHTS, Space, TeacherSettings
from sweeps.trials.trained_network import trained_settings


@dataclass(frozen=True)
class ResolvedTeacher:
    """A space's teacher, found and checked against the data and the students."""

    settings: TeacherSettings
    weights: TeacherWeights
    taps: tuple[str, ...]  # modules whose feature maps are compared; () where attention is not transferred
    sizes: Sizes  # of the feature maps at the taps

    @property
    def name(self) -> str:
        """The name that messages and headers show."""
        if self.settings.weights == START:
            return ITSELF
        if self.weights.record is not None:
            return self.weights.record.name
        if self.weights.bare:
            return Path(self.weights.reference).stem
        path = Path(self.weights.reference)
        return path.parent.name if path.name == WEIGHTS_FILE else self.weights.reference

    def header(self) -> HeaderTeacher:
        """Describe the teacher for the study's header.

        Returns:
            Name, hash of the weights, network and, where they are on record, errors and parameters.
        """
        record = self.weights.record
        measured = record.model_dump(include={"val_error", "test_error", "params"}) if record else {}
        return HeaderTeacher(
            name=self.name, weights=self.weights.sha256, network=self.weights.network.name, **measured
        )  # fmt: skip

    def section(
        self, recipe: Recipe, student: NetworkSettings, views: int | None, data: ImageData
    ) -> TeacherSection | None:  # fmt: skip
        """Give what the teacher adds to a trial's specification.

        Args:
            recipe: of the trial.
            student: the trial's network.
            views: augmented views of each image; None for new ones in every epoch.
            data: what both are trained on.

        Returns:
            The section `teacher`; None where the recipe does not use the teacher.

        Raises:
            InputError: as of `match_student`.
        """
        if not recipe.needs_teacher:
            return None
        attends = recipe.attention_weight > 0
        student_taps, sizes = self.match_student(student, data) if attends else ((), ())
        section = TeacherSection(
            name=self.name, source=self.weights.reference, own_network=self.weights.trusted_network,
            weights=self.weights.sha256, taps=self.taps if attends else (), student_taps=student_taps, sizes=sizes,
            views=views if views is not None and views < recipe.epochs else None,
        )  # fmt: skip
        if not self.weights.bare:
            return section
        network = NetworkSettings(**self.weights.network.model_dump())  # all fields given, as in other sections
        return section.model_copy(update={"network": network})  # the file does not say which network it is of

    def match_student(self, student: NetworkSettings, data: ImageData) -> tuple[tuple[str, ...], Sizes]:
        """Match a student's taps with the teacher's.

        Args:
            student: the trial's network.
            data: what both are trained on.

        Returns:
            The student's taps, and the size at which the maps of both are compared at each.

        Raises:
            InputError: the student does not name the ends of its stages, or has another number of taps.
        """
        taps, sizes = _student_taps(student, self.settings.student_taps, data.image_shape, len(data.classes))
        if len(taps) != len(self.taps):
            raise InputError(
                f"attention is compared tap by tap, but the teacher {self.name} has {len(self.taps)} "
                f"({', '.join(self.taps)}) and {student.name} has {len(taps)} ({', '.join(taps)}); give as many in "
                "`teacher.taps` and `teacher.student_taps`"
            )
        return taps, common_sizes(self.sizes, sizes)


def without_teacher(specification: TrialSpec) -> TrialSpec:
    """Remove the teacher from a specification, for a network that is only evaluated.

    Args:
        specification: with a teacher or without.

    Returns:
        The specification of the same network without a teacher.
    """
    untaught = specification.model_copy(update={"teacher": None})
    return untaught.with_train(**dict.fromkeys(TEACHER_WEIGHTS, 0.0))


@lru_cache(maxsize=256)  # many trials have the same network
def _student_taps(
    student: NetworkSettings, names: tuple[str, ...], image_shape: ImageShape, classes: int
) -> tuple[tuple[str, ...], Sizes]:
    """The taps of a student, the ends of its stages where no names are given, and the sizes of their maps."""
    network = network_to_count(student, image_shape, classes)
    taps = names or default_taps(network, image_shape)
    return taps, tap_sizes(network, taps, image_shape)


def resolve_teacher(space: Space, data: ImageData, root: Path) -> ResolvedTeacher | None:
    """Find the teacher of a space and check it.

    Args:
        space: with a teacher, which has a name, or without.
        data: of teacher and students.
        root: folder of teachers.

    Returns:
        The teacher; None where the space has none.

    Raises:
        InputError: there is no such teacher, it was trained on other images, or teacher and students cannot be compared
            at their taps.
    """
    settings = space.teacher
    if settings is None:
        return None
    weights = _find_weights(space, settings, data, root)
    if settings.weights != START:  # of that, `check_start` says what is known
        weights.check(data, allow_unverified=settings.unchecked)
    return match_teacher(space, data, weights)


def _find_weights(space: Space, settings: TeacherSettings, data: ImageData, root: Path) -> TeacherWeights:
    """Find the weights of a teacher: of its name, or any file, whose network the space then says."""
    source = space.start.weights if settings.weights == START else settings.weights
    if source is None:
        assert settings.name is not None  # with_teacher_name has filled it in
        path = Path(settings.name).expanduser()
        if "/" not in settings.name or path.is_dir() or not path.is_file() or not is_bare(path):
            return find_teacher(settings.name, root, network=settings.network)
        source = settings.name
    path = Path(source).expanduser()
    try:
        return teacher_from_weights(
            path, BuiltAs(_teacher_network(space, settings), data.image_shape, len(data.classes))
        )
    except InputError as error:
        raise InputError(f"`teacher.weights`: {error}") from error


def _teacher_network(space: Space, settings: TeacherSettings) -> NetworkSettings:
    """The network of a teacher whose file holds weights alone: the space's own, unless the space says another."""
    network = trained_settings(space.network)
    if settings.network not in (None, space.network.name):
        network = NetworkSettings(name=str(settings.network))
    return network if settings.width is None else network.model_copy(update={"width": settings.width})


def built_as(section: TeacherSection, data: ImageData) -> BuiltAs | None:
    """Read from a specification which network a teacher's file of bare weights is of.

    Args:
        section: the section `teacher` of the specification.
        data: the images of teacher and student.

    Returns:
        The network; None where the file itself says it.
    """
    if section.network is None:
        return None
    return BuiltAs(section.network, data.image_shape, len(data.classes))


def match_teacher(space: Space, data: ImageData, weights: TeacherWeights) -> ResolvedTeacher:
    """Match the taps of a teacher with those of the space's students.

    Args:
        space: with a teacher.
        data: of teacher and students.
        weights: of the teacher; they are not loaded.

    Returns:
        The teacher with its taps.

    Raises:
        InputError: a network does not name the ends of its stages, or teacher and a student have different numbers of
            taps.
    """
    settings = space.teacher
    assert settings is not None
    if space.largest("attention_weight") == 0:
        return ResolvedTeacher(settings, weights, (), ())
    network = network_to_count(weights.network, data.image_shape, weights.classes)
    taps = settings.taps or default_taps(network, data.image_shape)
    teacher = ResolvedTeacher(settings, weights, taps, tap_sizes(network, taps, data.image_shape))
    for student in space.corner_networks():
        teacher.match_student(student, data)
    return teacher
