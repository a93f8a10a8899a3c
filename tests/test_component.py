"""Finding components, reading them from recipes, and what each gives to keys. The contract tests list no component."""

from __future__ import annotations

import json
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from mmcompress import component
from mmcompress.component import KINDS, SEARCH, Component, RecipePath, Slot, digest_json, dump, find, parse
from mmcompress.errors import UsageError

pytestmark = pytest.mark.unit

LOSS = """
from mmcompress.losses import Loss

class {name}(Loss):
    alpha: float = 0.5
    def needs(self): return frozenset()
    def compute(self, student, teacher, projection): return 0.0
"""


def add(folder: Path, name: str, text: str | None = None, kind: str = "losses") -> Path:
    file = folder / kind / f"{name}.py"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(LOSS.format(name=name.title().replace("_", "")) if text is None else text)
    if folder not in SEARCH.folders:
        SEARCH.folders.append(folder)
    return file


# --- finding -------------------------------------------------------------------------------------------------------


def test_an_unknown_name_is_told_with_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"unknown losses component 'feature_msee' \(did you mean 'feature_mse'\?\)"):
        find("losses", "feature_msee")
    with pytest.raises(ValueError, match="not one of"):
        component.names("loss")


def test_a_folder_of_components_is_searched(tmp_path: Path) -> None:
    add(tmp_path, "mine")
    add(tmp_path, "_helpers", "raise RuntimeError('helpers are not components')")
    assert "mine" in component.names("losses")
    assert "_helpers" not in component.names("losses")
    made = parse("losses", {"mine": {"alpha": 2}})
    assert dump(made) == {"mine": {"weight": 1.0, "alpha": 2.0}}
    assert find("losses", "mine") is type(made)


def test_the_source_of_others_components_is_in_their_identity(tmp_path: Path) -> None:
    file = add(tmp_path, "mine")
    first = parse("losses", "mine").identity()
    assert re.fullmatch("[0-9a-f]{64}", first["source"])
    file.write_text(file.read_text() + "# changed\n")
    assert parse("losses", "mine").identity() != first
    ours = next(component.every("losses"))
    assert "source" not in ours().identity()


def test_a_taken_name_is_an_error(tmp_path: Path) -> None:
    add(tmp_path, "feature_mse")
    with pytest.raises(UsageError, match=r"'feature_mse' is defined twice: .*feature_mse and .*feature_mse.py"):
        component.names("losses")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "found 0"),
        (LOSS.format(name="One") + LOSS.format(name="Two"), "found 2"),
        ("import nothing_of_this_name", "cannot be imported: ModuleNotFoundError"),
        ("def (", "cannot be imported: SyntaxError"),
    ],
)
def test_a_file_that_holds_no_component(tmp_path: Path, text: str, message: str) -> None:
    add(tmp_path, "mine", text)
    for _ in range(2):
        with pytest.raises(UsageError, match=message):
            find("losses", "mine")


# --- in a recipe ---------------------------------------------------------------------------------------------------


class Holder(BaseModel):
    one: Annotated[Component, Slot("losses")]
    many: tuple[Annotated[Component, Slot("losses")], ...] = ()


def test_a_slot_reads_and_dumps_the_fields_of_the_class_that_is_there(tmp_path: Path) -> None:
    add(tmp_path, "mine")
    holder = Holder.model_validate({"one": "mine", "many": [{"mine": {"alpha": 3}}, {"mine": None}]})
    dumped = holder.model_dump(mode="json")
    assert dumped == {
        "one": {"mine": {"weight": 1.0, "alpha": 0.5}},
        "many": [{"mine": {"weight": 1.0, "alpha": 3.0}}, {"mine": {"weight": 1.0, "alpha": 0.5}}],
    }
    assert Holder.model_validate(dumped) == holder
    assert Holder(one=holder.one).one is holder.one
    schema = component.link(Holder.model_json_schema())
    assert schema["properties"]["one"]["$ref"] == "#/$defs/losses"
    assert schema["properties"]["many"]["items"] == {"$ref": "#/$defs/losses"}


@pytest.mark.parametrize(
    ("value", "location", "message"),
    [
        ("minee", ("one",), "did you mean 'mine'?"),
        ({"mine": {}, "other": {}}, ("one",), "expected one name with its fields"),
        ([], ("one",), "expected one name with its fields"),
        ({1: {}}, ("one",), "unknown name '1'"),
        ({"mine": [1]}, ("one",), "as a mapping"),
        ({"mine": {"alpha": "x"}}, ("one", "mine", "alpha"), "valid number"),
        ({"mine": {"alpha": float("nan")}}, ("one", "mine", "alpha"), "finite"),
        ({"mine": {"alfa": 1}}, ("one", "mine", "alfa"), "Extra inputs"),
        ({"mine": {"weight": -1}}, ("one", "mine", "weight"), "greater than or equal to 0"),
    ],
)
def test_mistakes_have_their_place(tmp_path: Path, value: Any, location: tuple[str, ...], message: str) -> None:
    add(tmp_path, "mine")
    with pytest.raises(ValidationError) as raised:
        Holder.model_validate({"one": value})
    (error,) = raised.value.errors()
    assert error["loc"] == location
    assert message in error["msg"]


def test_all_mistakes_of_nested_components_are_told_at_once(tmp_path: Path) -> None:
    add(tmp_path, "mine")
    with pytest.raises(ValidationError) as raised:
        Holder.model_validate({"one": {"mine": {"alpha": "x", "bata": 1}}, "many": ["nothing_like_it", {"mine": 3}]})
    assert [error["loc"] for error in raised.value.errors()] == [
        ("one", "mine", "alpha"),
        ("one", "mine", "bata"),
        ("many", 0),
        ("many", 1),
    ]


def test_paths_are_relative_to_the_recipe(tmp_path: Path) -> None:
    adapter = TypeAdapter(RecipePath)
    context = {"base": tmp_path}
    assert adapter.validate_python("a/../b.txt", context=context) == tmp_path / "b.txt"
    assert adapter.validate_python("/x/y", context=context) == Path("/x/y")
    assert adapter.validate_python("b.txt") == Path("b.txt")
    assert adapter.validate_python("~/b", context=context) == Path.home() / "b"


def test_digests_of_paths_follow_content_and_names(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "a").write_bytes(b"1")
    first = component.digest_path(folder)
    assert component.digest_path(tmp_path / "nothing") == "absent"
    (folder / "sub" / "a").rename(folder / "sub" / "b")
    second = component.digest_path(folder)
    (folder / "sub" / "b").write_bytes(b"2")
    assert len({first, second, component.digest_path(folder)}) == 3


def test_digests_of_json_do_not_depend_on_the_order_of_keys() -> None:
    assert digest_json({"a": 1, "b": [1, 2]}) == digest_json({"b": [1, 2], "a": 1})
    assert digest_json([1, 2]) != digest_json([2, 1])
    assert digest_json({"a": 1}) != digest_json({"a": "1"})
    with pytest.raises(ValueError, match="JSON compliant"):
        digest_json(float("nan"))


# --- the contract of every component -------------------------------------------------------------------------------

ALL = [(kind, name) for kind in KINDS for name in component.names(kind)]


def candidates(annotation: Any, folder: Path) -> Iterator[Any]:
    """Values that a field may take, the likely ones first."""
    if typing.get_origin(annotation) is Literal:
        yield from typing.get_args(annotation)
    for argument in typing.get_args(annotation):
        yield from candidates(argument, folder)
    if isinstance(annotation, Slot):
        yield from component.names(annotation.kind)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel) and annotation.model_fields:
        for name, info in annotation.model_fields.items():
            for value in candidates(info.annotation, folder):
                yield {info.alias or name: value}
    if annotation is Path:
        yield from (str(folder / "one.jsonl"), str(folder / "two.jsonl"), str(folder / "other"))
    if annotation is str:
        yield from ("image", "text", "other", "{text}", "x86-avx2", "sm89", "text.logits", "text.mask")
    yield from (True, False, 2, 3, 1, 0, 48, 64, 0.25, 0.75, 1.5, [2], [3, 4], ["image"], ["{text}"], ["a {}"])
    yield from (["text.embeds"], ["vision.embeds"], {"text": "a"}, {"a": ["b"]}, 8000)
    yield from ([{name: {}}] for name in component.names("losses"))


TOGETHER: dict[str, dict[str, Any]] = {
    "patience": {"patience": 1, "evaluations": 3},
    "student": {"student": {"from_teacher": {"text_layers": 1}}},
    "towers": {"towers": {"text": 0.5}},
    "shapes": {"shapes": {"batch": [1, 2, 4]}},
    "parts": {"parts": ["heads"]},
    "columns": {"columns": {"text": "text"}},
    "format": {"format": "json"},
    "classes": {"columns": {"label": "text"}, "classes": {"label": ["one"]}},
    "clip.classes": {"classes": {"names": ["a", "b"]}},
    "clap.classes": {"classes": {"names": ["a", "b"]}},
    "streaming": {"streaming": True, "limit": 1},
    "coco_captions.path": {"path": "{folder}/coco_two.json"},
    "coco_captions.images": {"images": "{folder}/more"},
    "coco_captions.split": {"path": "{folder}/karpathy.json", "split": "test"},
    "vqa_v2.questions": {"questions": "{folder}/asked_two.json"},
    "vqa_v2.annotations": {"annotations": "{folder}/said_two.json"},
    "vqa_v2.images": {"images": "{folder}/more"},
    "styles": {"styles": ["zh"]},
    "blip.terms": {"terms": {"matching": 0.5}, "task": "pretrained"},
    "vilt.labels": {"labels": "{folder}/two.jsonl", "head": "new"},
    "wav2vec2.new_head": {"new_head": ["yes", "no"], "task": "classify"},
    "perceiver.new_head": {"new_head": ["yes", "no"]},
    "logits_mse.scale": {"scale": "fusion.scale"},
    "pair": {"pair": ["audio", "text"]},
    "damage": {"damage": [{"noise": 0.5}]},
    "teachers": {"teachers": [{"clip": {"path": "other"}, "weight": 0.5}]},
    "prune.steps": {"steps": 2, "recover": {"losses": ["feature_mse"], "steps": 3}},
    "recover": {"recover": {"losses": ["feature_mse"], "steps": 3}},
}
"""Other values of fields that candidates() does not come upon, with the fields that they need beside them."""


def field_candidates(info: FieldInfo, folder: Path) -> Iterator[Any]:
    for part in (*info.metadata, info.annotation):
        yield from candidates(part, folder)


def valid(cls: type[Component], fields: dict[str, Any]) -> Component | None:
    try:
        made = cls.model_validate(fields)
        made.identity()
    except (ValidationError, UsageError):
        return None
    return made


SMALLEST: dict[str, dict[str, Any]] = {
    "dataset": {"path": "{folder}/one.jsonl", "columns": {"image": "image"}},
    "coco_captions": {"path": "{folder}/coco.json", "images": "{folder}"},
    "vqa_v2": {"questions": "{folder}/asked.json", "annotations": "{folder}/said.json", "images": "{folder}/other"},
}
"""Required fields of components whose files must fit together."""


def placed(fields: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The fields with the folder of the test's files."""
    return {k: v.replace("{folder}", str(folder)) if isinstance(v, str) else v for k, v in fields.items()}


def smallest(cls: type[Component], folder: Path) -> dict[str, Any]:
    """The fields that a component cannot be without."""
    fields: dict[str, Any] = {}
    if issubclass(cls, component_families()):
        fields["path"] = str(folder / "one.jsonl")
    fields |= placed(SMALLEST.get(cls.component_name(), {}), folder)
    for name, info in cls.model_fields.items():
        key = info.alias or name
        if not info.is_required() or key in fields:
            continue
        for value in field_candidates(info, folder):
            try:
                cls.model_validate({**fields, key: value})
            except ValidationError as error:
                if any(item["loc"][:1] == (key,) for item in error.errors()):
                    continue
            fields[key] = value
            break
    return fields


def component_families() -> type[Component]:
    from mmcompress.families import Family

    return Family


@pytest.fixture
def files(tmp_path: Path) -> Path:
    for name in ("one", "two"):
        (tmp_path / f"{name}.jsonl").write_text(f'{{"image": "{name}.png", "text": "{name}", "other": "{name}.png"}}\n')
        for folder in (tmp_path, tmp_path / "other"):
            folder.mkdir(exist_ok=True)
            (folder / f"{name}.png").write_bytes(f"{folder.name} {name}".encode())
    write_annotations(tmp_path)
    return tmp_path


def write_annotations(folder: Path) -> None:
    """Annotations in the published formats, of pictures that differ between the folders."""
    for place in ("other", "more"):
        (folder / place).mkdir(exist_ok=True)
        for name in ("one.png", "7.png"):
            (folder / place / name).write_bytes(f"{place} {name}".encode())
    for suffix, text in (("", "a"), ("_two", "b")):
        image = {"id": 1, "file_name": "one.png" if not suffix else "two.png"}
        coco = {"images": [image], "annotations": [{"image_id": 1, "caption": text}]}
        asked = {"questions": [{"question_id": 1, "image_id": 7, "question": text}]}
        said = {"annotations": [{"question_id": 1, "image_id": 7, "answers": [{"answer": text}]}]}
        for stem, found in (("coco", coco), ("asked", asked), ("said", said)):
            (folder / f"{stem}{suffix}.json").write_text(json.dumps(found))
    sentences = [{"raw": "a"}]
    karpathy = {"images": [{"cocoid": 1, "filename": "one.png", "split": "test", "sentences": sentences}]}
    (folder / "karpathy.json").write_text(json.dumps(karpathy))


@pytest.mark.parametrize(("kind", "name"), ALL)
def test_dump_and_load_are_equal_and_each_field_changes_the_identity(kind: str, name: str, files: Path) -> None:
    cls = find(kind, name)
    assert cls.kind == kind
    assert cls.component_name() == name
    assert cls.__doc__
    fields = smallest(cls, files)
    made = cls.model_validate(fields)
    loaded = parse(kind, dump(made))
    assert loaded == made
    assert type(loaded) is cls
    assert digest_json(loaded.identity()) == digest_json(made.identity())
    unchanged = []
    for field, info in cls.model_fields.items():
        if "hub" in cls.model_fields and field in ("hub", "revision", "config"):
            continue  # alternatives of `path`, tested with the families and with the data set
        updates = ({info.alias or field: value} for value in field_candidates(info, files))
        given = TOGETHER.get(f"{name}.{field}", TOGETHER.get(field))
        for update in updates if given is None else [placed(given, files)]:
            other = valid(cls, {**fields, **update})
            if other is not None and other != made:
                assert parse(kind, dump(other)) == other
                assert digest_json(other.identity()) != digest_json(made.identity()), f"{field} is not in the identity"
                assert dump(other) != dump(made)
                break
        else:
            unchanged.append(field)
    assert not unchanged, "no other value found: teach candidates() one"


def test_components_were_found() -> None:
    assert {kind for kind, _ in ALL} == set(KINDS)


@pytest.mark.parametrize(("kind", "name"), ALL)
def test_components_are_frozen_and_refuse_unknown_fields(kind: str, name: str, files: Path) -> None:
    cls = find(kind, name)
    fields = smallest(cls, files)
    with pytest.raises(ValidationError, match="Extra inputs"):
        cls.model_validate({**fields, "no_such_field": 1})
    for field in cls.model_fields:
        with pytest.raises(ValidationError, match="frozen"):
            setattr(cls.model_validate(fields), field, 1)


def test_the_schema_of_recipes_refers_to_what_it_defines() -> None:
    from mmcompress.recipe import json_schema

    schema = json_schema()
    references = set(re.findall(r'"\$ref": "#/\$defs/([^"]+)"', json.dumps(schema)))
    assert references <= set(schema["$defs"])
    assert {f"{kind}.{name}" for kind, name in ALL} <= references
