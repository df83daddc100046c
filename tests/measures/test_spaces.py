"""Feature spaces: exact neighbours in them, where features come from, how images are prepared, and what is refused."""

import re
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import spaces
import torch
from PIL import Image
from reference import random_images

from diffmem.errors import DataError, OutOfMemory
from diffmem.measures import DeclaredSpace, SpaceIdentity, identity_of, is_copy, measure_in, two_nearest
from diffmem.measures.in_space import IMAGENET, opened, prepared, resized
from diffmem.measures.nearest import NEAREST
from diffmem.measures.similarity import CANDIDATES, TRAINING_ROWS, most_similar, two_nearest_features
from diffmem.measures.spaces import PIXELS

CPU = torch.device("cpu")
SHAPE = (1, 8, 8)


def declared(features: Any, **more: Any) -> DeclaredSpace:
    return DeclaredSpace.of("own", {"features": features, "rule": "nearest", **more})


def features_of(space: DeclaredSpace, images: torch.Tensor) -> torch.Tensor:
    return opened(space, CPU)[0].features(images)


# --- neighbours ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "N", "d"), [(7, 2, 3), (30, 50, 1), (40, 300, 17), (3, TRAINING_ROWS + 5, 4)])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_the_most_similar_image_is_that_of_ten_lines_of_numpy(n, N, d, offset):
    generator = np.random.default_rng(n)
    x, y = generator.normal(offset, 1, (n, d)), generator.normal(offset, 1, (N, d))
    found = most_similar(torch.from_numpy(x), torch.from_numpy(y))
    u, v = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (x, y))
    squared = ((u[:, None] - v) ** 2).sum(axis=2)
    np.testing.assert_allclose(found.distance, squared.min(axis=1) / 2, rtol=1e-9, atol=1e-18)
    np.testing.assert_allclose(1 - found.distance.numpy(), (u @ v.T).max(axis=1), atol=1e-12)
    assert (found.yardstick == 1).all()
    if d > 1:
        assert found.nearest.tolist() == squared.argmin(axis=1).tolist()


def test_a_copy_has_a_similarity_of_1_exactly_and_the_first_of_equal_images_is_named():
    features = torch.randn(60, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    twice = torch.cat([features, features * 4])
    found = most_similar(features, twice)
    assert found.distance.tolist() == [0.0] * 60
    assert found.nearest.tolist() == list(range(60))


def test_features_of_any_size_have_a_direction():
    tiny, huge = (torch.tensor([[3 * scale, 4 * scale]], dtype=torch.float64) for scale in (1e-300, 1e300))
    assert most_similar(tiny, huge).distance.item() < 1e-15
    assert most_similar(torch.tensor([[1.0, 0.0]]), torch.tensor([[-1.0, 0.0]])).distance.item() == 2


@pytest.mark.parametrize(
    ("n", "N", "shape"),
    [(20, 2, (1, 4, 4)), (50, 100, (3, 8, 8)), (30, TRAINING_ROWS + 100, (1, 2, 2)), (1100, 40, (1, 3, 3))],
)
def test_the_features_that_are_the_pixels_give_the_paper_s_neighbours_and_copies_to_the_bit(n, N, shape):
    training = random_images(N, *shape, seed=1)
    if shape == (1, 2, 2):
        training = training // 64  # many images are equally near
    images = torch.cat([random_images(n, *shape, seed=2), training[:2]])
    index, distance = two_nearest(images, training)
    for space in (declared(spaces.pixels), declared(spaces.as_array), declared(PIXELS.features)):
        found = space.measure.compare(images, training, index, distance)
        assert torch.equal(found.nearest, index[:, 0])
        assert torch.equal(found.distance, distance[:, 0])
        assert torch.equal(found.yardstick, distance[:, 1])
    by_paper = is_copy(distance[:, 0], distance[:, 1], NEAREST.threshold)
    assert torch.equal(is_copy(found.distance, found.yardstick, space.measure.threshold), by_paper)


def test_more_equally_near_images_than_candidates_are_named_in_their_order():
    features = torch.ones(3 * CANDIDATES, 2)
    found = two_nearest_features(features[:1], features)
    assert (found.nearest.tolist(), found.distance.tolist(), found.yardstick.tolist()) == ([0], [0.0], [0.0])


# --- features ------------------------------------------------------------------------------------------


def test_features_of_many_images_are_those_of_each(tmp_path):
    space = declared(str(spaces.torchscript(tmp_path / "a.pt")), pixels="0..1")
    images = random_images(600, *SHAPE)
    expected = torch.cat([spaces.Convolution()(images[i : i + 1].float() / 255) for i in range(600)])
    torch.testing.assert_close(features_of(space, images), expected)


def test_a_batch_that_memory_is_too_short_for_is_halved_until_one_image_is():
    sizes = []

    def short(images: torch.Tensor) -> torch.Tensor:
        sizes.append(len(images))
        if len(images) > 50:
            raise MemoryError
        return images.flatten(1).float()

    images = random_images(300, *SHAPE)
    assert torch.equal(features_of(declared(short), images), images.flatten(1).float())
    assert max(sizes) == 256
    assert max(size for size in sizes[3:]) <= 50

    def without(_images: torch.Tensor) -> torch.Tensor:
        raise MemoryError

    with pytest.raises(OutOfMemory, match="out of memory"):
        features_of(declared(without), images)


def test_a_function_is_given_the_images_and_a_model_floating_point_values(tmp_path):
    given = []

    def noting(images: torch.Tensor) -> torch.Tensor:
        given.append(images)
        return images.flatten(1)

    images = random_images(5, *SHAPE)
    features_of(declared(noting), images)
    features_of(declared(noting, resize="square 4"), images)
    features_of(declared(noting, pixels="0..1"), images)
    assert [(each.dtype, tuple(each.shape)) for each in given] == [
        (torch.uint8, (5, 1, 8, 8)),
        (torch.uint8, (5, 1, 4, 4)),
        (torch.float32, (5, 1, 8, 8)),
    ]
    assert torch.equal(given[0], images)
    model = declared(str(spaces.torchscript(tmp_path / "a.pt")))  # a convolution takes no whole numbers
    torch.testing.assert_close(features_of(model, images), spaces.Convolution()(images.float()))


def test_the_scales_of_pixels_are_those_of_their_names():
    images = random_images(3, 1, 4, 4)
    values = images.numpy().astype(float)
    np.testing.assert_array_equal(prepared(images, "none", "0..255"), values)
    np.testing.assert_allclose(prepared(images, "none", "0..1"), values / 255, rtol=1e-6)
    mean, deviation = (np.array(each).reshape(1, 3, 1, 1) for each in IMAGENET)
    expected = (np.repeat(values, 3, axis=1) / 255 - mean) / deviation
    np.testing.assert_allclose(prepared(images, "none", "imagenet"), expected, rtol=1e-4, atol=1e-5)
    colour = random_images(3, 3, 4, 4)
    expected = (colour.numpy() / 255 - mean) / deviation
    np.testing.assert_allclose(prepared(colour, "none", "imagenet"), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("rule", "size", "scaled", "box"),
    [
        ("short 12", (30, 20), (18, 12), None),
        ("short 12", (20, 30), (12, 18), None),
        ("short 12 crop 10", (20, 32), (12, 19), (4, 1, 14, 11)),
        ("square 9", (30, 20), (9, 9), None),
        ("short 24", (16, 8), (48, 24), None),
    ],
)
def test_images_are_resized_as_pillow_does_it(rule, size, scaled, box):
    image = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
    expected = Image.fromarray(image).resize(scaled[::-1], Image.Resampling.BILINEAR)
    expected = expected if box is None else expected.crop(box)
    found = resized(torch.from_numpy(image)[None, None].float(), rule)[0, 0].numpy()
    assert found.shape == np.asarray(expected).shape
    np.testing.assert_allclose(found, np.asarray(expected, dtype=float), atol=1.01)


def test_an_image_of_the_size_asked_for_is_left_as_it_is():
    images = random_images(2, 3, 8, 8)
    assert torch.equal(resized(images.float(), "short 8"), images.float())
    assert torch.equal(resized(images.float(), "short 8 crop 8"), images.float())


def test_grey_training_images_beside_images_in_colour_are_compared_in_colour():
    grey = random_images(6, *SHAPE)
    compare = declared(spaces.pixels).measure.prepare(grey)
    colour = grey.expand(-1, 3, -1, -1)
    found = compare(colour, colour, *two_nearest(colour, colour))
    assert found.nearest.tolist() == list(range(6))
    assert found.distance.tolist() == [0.0] * 6


# --- identity ------------------------------------------------------------------------------------------


def test_an_identity_follows_the_content_of_a_file_and_not_its_place(tmp_path):
    (tmp_path / "other").mkdir()
    same = [spaces.torchscript(tmp_path / name) for name in ("a.pt", "b.pt")]
    (tmp_path / "other" / "a.pt").write_bytes(same[0].read_bytes())
    other = spaces.torchscript(tmp_path / "c.pt", seed=1)

    def content(path: Path) -> str:
        return identity_of(declared(str(path)), SHAPE, CPU).content

    assert content(same[0]) == content(tmp_path / "other" / "a.pt") != content(other)
    found = identity_of(declared(str(same[0]), resize="square 4", pixels="0..1", threshold=0.4), SHAPE, CPU)
    assert (found.measure, found.features, found.resize, found.pixels) == ("own", "a.pt", "square 4", "0..1")
    assert (found.rule, found.threshold, found.dimensions) == ("nearest", 0.4, 16)


def test_a_file_that_is_replaced_is_opened_again(tmp_path):
    path, images = tmp_path / "a.pt", random_images(20, *SHAPE)
    found = []
    for seed in (0, 1):
        spaces.torchscript(path, seed=seed)
        measure = declared(str(path), pixels="0..1").measure
        compared = measure.compare(images[:5], images[5:], *two_nearest(images[:5], images[5:]))
        found.append(compared.distance)
        features = spaces.Convolution(seed=seed)(images.float() / 255).double().numpy()
        distances = np.linalg.norm(features[:5, None] - features[5:], axis=2)
        np.testing.assert_allclose(found[-1], distances.min(axis=1), rtol=1e-5)
    assert not torch.allclose(*found)


def test_an_identity_of_a_function_follows_its_source(tmp_path):
    names = []
    for number, factor in enumerate((1, 1, 2)):
        (tmp_path / f"source_{number}.py").write_text(f"def own(images):\n    return images.flatten(1) * {factor}\n")
        space = DeclaredSpace.of("own", {"features": f"source_{number}:own", "rule": "nearest"})
        names.append(identity_of(DeclaredSpace("own", space.settings, folder=str(tmp_path)), SHAPE, CPU).content)
    assert names[0] == names[1] != names[2]
    built_in = declared(np.asarray)  # it has no source
    assert features_of(declared(spaces.pixels), random_images(2, *SHAPE)).shape == (2, 64)
    with pytest.raises(DataError, match=r"it has returned \[2, 1, 8, 8\] for 2 images"):
        identity_of(built_in, SHAPE, CPU)


# --- models of other packages --------------------------------------------------------------------------


def test_an_onnx_file_gives_the_features_of_its_model(tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    helper, model = onnx.helper, spaces.Convolution()
    weight = onnx.numpy_helper.from_array(model.convolution.weight.numpy(), "weight")
    nodes = [
        helper.make_node("Conv", ["images", "weight"], ["found"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["found"], ["positive"]),
        helper.make_node("GlobalAveragePool", ["positive"], ["means"]),
        helper.make_node("Flatten", ["means"], ["features"]),
    ]
    of = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "features",
        [helper.make_tensor_value_info("images", of, ["n", 1, 8, 8])],
        [helper.make_tensor_value_info("features", of, ["n", 16])],
        [weight],
    )
    path = tmp_path / "a.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    images = random_images(300, *SHAPE)
    expected = model(images.float())
    torch.testing.assert_close(features_of(declared(str(path)), images), expected, rtol=1e-4, atol=1e-3)
    path.write_bytes(b"no such thing")
    with pytest.raises(DataError, match=r"a\.onnx is no ONNX file: "):
        features_of(declared(str(path), resize="square 8"), images)


def test_a_model_of_transformers_in_a_folder_gives_its_pooled_features(tmp_path):
    transformers = pytest.importorskip("transformers")
    settings = transformers.ViTConfig(
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
        image_size=8,
        patch_size=4,
        num_channels=1,
    )
    model = transformers.ViTModel(settings).eval()
    model.save_pretrained(tmp_path / "vit")
    given = DeclaredSpace.of("own", {"features": "transformers:vit", "rule": "nearest", "pixels": "0..1"})
    space = DeclaredSpace("own", given.settings, folder=str(tmp_path))
    images = random_images(5, *SHAPE)
    with torch.no_grad():
        expected = model(images.float() / 255).pooler_output
    torch.testing.assert_close(features_of(space, images), expected, rtol=1e-4, atol=1e-5)
    assert identity_of(space, SHAPE, CPU).dimensions == 8


def test_a_model_of_timm_in_a_folder_gives_its_pooled_features(tmp_path):
    timm = pytest.importorskip("timm")
    from timm.models import save_for_hf

    model = timm.create_model("resnet10t", num_classes=0).eval()
    save_for_hf(model, tmp_path / "net", model_config={"num_classes": 0})
    images = random_images(4, 3, 32, 32)
    space = declared(f"timm:local-dir:{tmp_path / 'net'}", pixels="imagenet")
    with torch.no_grad():
        expected = model(prepared(images, "none", "imagenet"))
    torch.testing.assert_close(features_of(space, images), expected, rtol=1e-3, atol=1e-4)
    with pytest.raises(DataError, match=r"^the space own \(timm:nosuchnet\): the model cannot be loaded: "):
        identity_of(declared("timm:nosuchnet"), SHAPE, CPU)


def test_onnxruntime_is_asked_for_by_an_onnx_file(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    (tmp_path / "a.onnx").write_bytes(b"")
    said = "the space own (a.onnx): needs onnxruntime, which is not installed; pip install onnxruntime"
    assert refusal(str(tmp_path / "a.onnx")) == said


@pytest.mark.parametrize("package", ["timm", "transformers"])
def test_a_package_that_is_not_installed_is_named_with_what_installs_it(package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    said = f"the space own ({package}:name): needs {package}, which is not installed; pip install {package}"
    assert refusal(f"{package}:name") == said


# --- what is refused -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (spaces.flat, "it has returned [128] for 2 images, not [2, d]"),
        (spaces.too_long, "it has returned [4, 64] for 2 images, not [2, d]"),
        (spaces.not_numbers, "the features of 1 of 2 images are NaN or infinite"),
        (spaces.infinite, "the features of 2 of 2 images are NaN or infinite"),
        (spaces.a_list, "it has returned a list, not a tensor or an array [n, d]"),
        (spaces.texts, "it has returned <U1 values, not numbers"),
        (spaces.complex_numbers, "it has returned torch.complex64 values, not numbers"),
        (spaces.raising, "it failed on 2 images of 1 x 8 x 8: KeyError: 'weights'"),
    ],
    ids=lambda each: getattr(each, "__name__", ""),
)
def test_what_a_function_returns_has_to_be_features(function, said):
    with pytest.raises(DataError) as refused:
        identity_of(declared(function), SHAPE, CPU)
    assert str(refused.value) == f"the space own (spaces:{function.__name__}): {said}"


def test_features_of_0_are_similar_to_nothing_but_can_be_near():
    similar = DeclaredSpace.of("own", {"features": spaces.zeros, "threshold": 0.5})
    with pytest.raises(DataError) as refused:
        identity_of(similar, SHAPE, CPU)
    assert str(refused.value) == (
        "the space own (spaces:zeros): the features of 2 of 2 images are all 0, which is similar to nothing; "
        'rule = "nearest" compares them all the same'
    )
    assert identity_of(declared(spaces.zeros), SHAPE, CPU).dimensions == 3


def test_features_of_another_length_than_before_are_refused():
    space, images = declared(spaces.by_batch), random_images(300, *SHAPE)
    with pytest.raises(DataError) as refused:
        features_of(space, images)
    before, after = 256 % 7 + 1, 44 % 7 + 1
    said = f"it has returned features of {after} numbers, and of the images before of {before}"
    assert str(refused.value) == f"the space own (spaces:by_batch): {said}"
    compare = space.measure.prepare(images[:4])
    with pytest.raises(DataError) as refused:
        compare(images[:5], images[:4], *two_nearest(images[:5], images[:4]))
    said = "features of 6 numbers, but 5 of training images"
    assert str(refused.value) == f"the space own (spaces:by_batch): {said}"


def refusal(features: str) -> str:
    with pytest.raises(DataError) as refused:
        identity_of(declared(features), SHAPE, CPU)
    return str(refused.value)


def test_a_function_that_is_not_there_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("broken_module.py").write_text("1 / 0")
    assert refusal("no_such_module:own") == (
        "the space own (no_such_module:own): no module 'no_such_module' on Python's path or in ."
    )
    assert refusal("spaces:nosuch") == ("the space own (spaces:nosuch): module 'spaces' has no attribute 'nosuch'")
    assert refusal("spaces:NO_FUNCTION") == (
        "the space own (spaces:NO_FUNCTION): it is a int, not a function of images"
    )
    assert refusal("broken_module:own") == (
        "the space own (broken_module:own): loading it failed: ZeroDivisionError: division by zero"
    )


def test_a_file_that_is_no_model_is_refused(tmp_path):
    path = tmp_path / "a.pt"
    assert refusal(str(path)) == (
        f"the space own (a.pt): {path} cannot be read: No such file or directory; features are a file, "
        "module:function, timm:NAME or transformers:NAME"
    )
    path.write_bytes(b"no such thing")
    said = f"the space own (a.pt): {path} is no TorchScript file; torch.jit.script(model).save(path) makes one"
    assert refusal(str(path)) == said
    torch.save({"weight": torch.zeros(3)}, path)
    assert refusal(str(path)) == said


@pytest.mark.parametrize(
    ("name", "table", "said"),
    [
        ("nearest", {"features": "a:b"}, "the space 'nearest': is a measure already; give the space another name"),
        ("gaps", {"features": "a:b"}, "the space 'gaps': is a measure already; give the space another name"),
        (
            "SSCD",
            {"features": "a:b"},
            "the space 'SSCD': a name has small letters, digits, - and _, and begins with a letter",
        ),
        (
            "sscd",
            {"features": "a:b"},
            "the space sscd: threshold: missing; a similarity needs one, and there is none for all features "
            "(SSCD: 0.5 or 0.6)",
        ),
        ("sscd", {"threshold": 0.5}, "the space sscd: features: Field required"),
        (
            "sscd",
            {"features": "a:b", "resize": "320"},
            'the space sscd: resize: "none", "short 288", "short 256 crop 224" or "square 320"',
        ),
        ("sscd", {"features": "a:b", "threshold": 1.0}, "the space sscd: threshold: Input should be less than 1"),
    ],
)
def test_a_table_that_is_at_fault_is_refused(name, table, said):
    with pytest.raises(DataError) as refused:
        DeclaredSpace.of(name, table)
    assert str(refused.value) == said


@pytest.mark.parametrize("rule", ["short 224 crop 256", "short", "crop 5", "short 0", "square 99999", "short 5 crop"])
def test_a_resize_rule_that_cannot_be_is_refused(rule):
    with pytest.raises(DataError, match="resize"):
        declared("a:b", resize=rule)


@pytest.mark.parametrize("rule", ["none", "short 288", "short 256 crop 224", "square 320", "short 8 crop 8"])
def test_the_resize_rules_of_published_pipelines_can_be_said(rule):
    assert declared("a:b", resize=rule).settings.resize == rule


@pytest.mark.parametrize(
    ("features", "shown"),
    [
        ("/home/me/nets/sscd.pt", "sscd.pt"),
        ("module:function", "module:function"),
        ("timm:resnet50", "timm:resnet50"),
        ("transformers:facebook/dinov2-base", "transformers:facebook/dinov2-base"),
        ("timm:local-dir:/home/me/nets/own", "timm:own"),
        ("transformers:/home/me/nets/own", "transformers:own"),
    ],
)
def test_a_space_is_shown_without_the_folders_of_a_machine(features, shown):
    assert declared(features).shown == shown
    assert "/home" not in declared(features).measure.source


def test_the_words_of_a_measure_in_a_space_are_of_similarity():
    measure = DeclaredSpace.of("sscd", {"features": "a:b", "threshold": 0.6}).measure
    assert measure.threshold == 1 - 0.6
    assert measure.says(f"{measure.threshold:g}") == (
        "the cosine similarity to its most similar training image is above 0.6 in the space sscd"
    )
    assert measure.says("1/3") == (
        "the cosine similarity to its most similar training image is above 0.666667 in the space sscd"
    )
    assert re.search("cosine similarity", measure.axis)
    assert declared("a:b").measure.says("1/3").startswith("its nearest training image is less than 1/3 times as far")


def test_a_space_that_only_a_store_knows_compares_nothing():
    images = random_images(3, *SHAPE)
    stored = measure_in(SpaceIdentity("own", "a:b", "sha256:0", "none", "0..1", "nearest", 1 / 3, 4))
    with pytest.raises(DataError) as refused:
        stored.compare(images, images, *two_nearest(images, images))
    said = "a store knows a space by its name alone; declare it to compare images in it"
    assert str(refused.value) == said


def test_opening_torchscript_warns_of_nothing(tmp_path):
    path = spaces.torchscript(tmp_path / "a.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        identity_of(declared(str(path)), SHAPE, CPU)
