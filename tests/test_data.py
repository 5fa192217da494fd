import os
import time

import numpy as np
import pytest
import torch
from PIL import Image

from rlprune.config import build, conf_dir, load_yaml
from rlprune.data.base import Augmentation, Images, Normalization, limited, split
from rlprune.data.batches import Batches
from rlprune.errors import UserError


def dataset(name="digits", cache=None, data=None, **settings):
    return build(load_yaml(conf_dir() / "dataset" / f"{name}.yaml") | settings, "dataset", cache_dir=cache, data_dir=data)


def batches(images, **settings):
    plain = Normalization((0.0,) * 3, (1.0,) * 3)
    given = {"batch_size": 4, "normalization": plain, "augmentation": Augmentation(), "num_classes": 2, "seed": 0}
    return Batches(images, device=torch.device("cpu"), **(given | settings))


def coloured(count=10, size=6):
    """Image i holds the value i everywhere."""
    pixels = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, size, size).contiguous()
    return Images(pixels, torch.arange(count) % 2)


def test_digits_have_their_sizes_and_the_splits_share_no_image():
    source = dataset()
    train, names = source.read_train()
    test = source.read_test()
    assert (len(train), len(test), len(names)) == (1438, 359, 10)
    assert train.pixels.shape[1:] == (3, 32, 32)
    assert train.pixels.dtype == torch.uint8
    splits = split(source, seed=3)
    assert len(splits.train) + len(splits.search) == len(train)
    assert len(splits.search) == round(0.2 * len(train))
    seen = [{image.numpy().tobytes() for image in images.pixels} for images in (splits.train, splits.search, test)]
    assert not seen[0] & seen[1]
    assert not (seen[0] | seen[1]) & seen[2]


def test_the_search_split_is_stratified_and_seeded():
    splits, again, other = split(dataset(), 0), split(dataset(), 0), split(dataset(), 1)
    shares = torch.bincount(splits.search.labels).double() / len(splits.search)
    wanted = torch.bincount(splits.train.labels).double() / len(splits.train)
    assert (shares - wanted).abs().max() < 0.01
    assert torch.equal(splits.search.pixels, again.search.pixels)
    assert not torch.equal(splits.search.pixels, other.search.pixels)


def test_limit_keeps_the_classes_even():
    images = limited(dataset().read_train()[0], 100)
    assert len(images) == 100
    assert torch.bincount(images.labels).max() - torch.bincount(images.labels).min() <= 2


def test_normalisation_is_measured_on_the_training_images_or_given():
    splits = split(dataset(), 0)
    values = splits.normalization(splits.train.pixels)
    assert values.mean((0, 2, 3)).abs().max() < 1e-4
    assert (values.std((0, 2, 3)) - 1).abs().max() < 1e-3
    given = split(dataset(mean=[0.5, 0.4, 0.3], std=[0.2, 0.2, 0.1]), 0).normalization
    pixel = torch.tensor([255, 0, 51], dtype=torch.uint8).view(1, 3, 1, 1)
    torch.testing.assert_close(given(pixel).flatten(), torch.tensor([2.5, -2.0, -1.0]))
    with pytest.raises(UserError, match=r"dataset\.mean=.*3 numbers"):
        split(dataset(mean=[0.5]), 0)


def test_an_epoch_visits_every_image_once_in_a_new_order():
    loader = batches(coloured())
    epochs = [torch.cat([(images[:, 0, 0, 0] * 255).round().long() for images, _ in loader.epoch(number)]) for number in range(2)]
    assert len(loader) == 3
    for epoch in epochs:
        assert sorted(epoch.tolist()) == list(range(10))
    assert epochs[0].tolist() != epochs[1].tolist()
    rest = torch.cat([(images[:, 0, 0, 0] * 255).round().long() for images, _ in loader.epoch(1, start=2)])
    assert rest.tolist() == epochs[1].tolist()[8:]
    assert len(list(batches(coloured(9)).epoch(0))) == 2  # batch norm cannot train on the one image that is left


def test_labels_stay_with_their_images_through_augmentation():
    for images, labels in batches(coloured(), augmentation=Augmentation(crop=2, flip=True)).epoch(0):
        value = (images.amax((1, 2, 3)) * 255).round().long()
        assert (value % 2 == labels).all()


def test_crops_are_windows_of_the_padded_image_and_flips_mirror_it():
    pixels = torch.arange(36, dtype=torch.uint8).view(1, 1, 6, 6).expand(400, 3, 6, 6).contiguous()
    images = Images(pixels, torch.zeros(400, dtype=torch.long))
    ((batch, _),) = batches(images, batch_size=400, augmentation=Augmentation(crop=1, flip=True)).epoch(0)
    padded = torch.nn.functional.pad(pixels[0], [1] * 4)
    windows = [padded[:, i : i + 6, j : j + 6] for i in range(3) for j in range(3)]
    allowed = {w.numpy().tobytes() for window in windows for w in (window.contiguous(), window.flip(2).contiguous())}
    found = {image.numpy().tobytes() for image in (batch * 255).round().byte().contiguous()}
    assert found == allowed


@pytest.fixture
def folder(tmp_path):
    generator = np.random.default_rng(0)
    for part, count in (("train", 8), ("val", 3)):
        for name in ("cat", "dog"):
            (tmp_path / part / name).mkdir(parents=True)
            for index in range(count):
                size = (20, 16) if index == 0 else (32, 32)
                Image.fromarray(generator.integers(0, 255, (*size, 3), dtype=np.uint8)).save(tmp_path / part / name / f"{index}.png")
    return tmp_path


def test_imagefolder_reads_resizes_and_caches(folder, caplog):
    source = dataset("imagefolder", folder / "cache", root=str(folder))
    source.check_test()
    files, names = source.read_train()
    images = source.hold(files)
    assert names == ("cat", "dog")
    assert images.pixels.shape == (16, 3, 32, 32)
    assert images.labels.tolist() == [0] * 8 + [1] * 8
    exact = torch.from_numpy(np.array(Image.open(folder / "train/dog/3.png"))).permute(2, 0, 1)
    assert torch.equal(images.pixels[8 + 3], exact)
    assert len(source.read_test()) == 6
    (cache,) = (folder / "cache").iterdir()
    stamp = cache.stat().st_mtime_ns
    assert torch.equal(source.hold(files).pixels, images.pixels)
    assert cache.stat().st_mtime_ns == stamp
    data = bytearray(cache.read_bytes())
    for damage in (data[:-100], data[:-1] + bytes([data[-1] ^ 1])):
        cache.write_bytes(damage)
        assert torch.equal(source.hold(files).pixels, images.pixels)
        assert "cache is damaged" in caplog.text
        caplog.clear()
    stamp = cache.stat().st_mtime_ns
    source.hold(files)
    assert cache.stat().st_mtime_ns == stamp  # whole again


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_images_on_disk_are_the_images_in_memory(folder):
    files, _ = dataset("imagefolder", folder / "cache", root=str(folder), memory_gb=0.0).read_train()
    held = dataset("imagefolder", folder / "cache", root=str(folder)).hold(files)
    assert (files.shape, len(files), held.shape) == ((3, 32, 32), 16, (3, 32, 32))
    chosen = np.array([3, 9, 10])
    assert torch.equal(files.subset(chosen).load().pixels, held.pixels[torch.from_numpy(chosen)])
    for workers in (0, 2):
        source = dataset("imagefolder", folder / "cache", root=str(folder), memory_gb=0.0, num_workers=workers)
        streamed = source.hold(source.read_train()[0])
        batches = list(streamed.stream([[(0, 0), (9, 0)], [(3, 0)]], None, torch.device("cpu")))
        assert torch.equal(torch.cat([pixels for pixels, _ in batches]), held.pixels[[0, 9, 3]])
        assert torch.cat([labels for _, labels in batches]).tolist() == [0, 1, 0]
    (folder / "train/cat/0.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"0\.png: is no readable image"):
        list(streamed.stream([[(0, 0)]], None, torch.device("cpu")))


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("how", [Augmentation(crop=2, flip=True), Augmentation(resized_crop=(0.3, 1.0), flip=True, randaugment=9)])
def test_a_stream_draws_the_same_pictures_whatever_its_workers(folder, how):
    seen = []
    for workers, start in ((0, 0), (2, 0), (1, 2)):
        source = dataset("imagefolder", folder / "cache", root=str(folder), memory_gb=0.0, num_workers=workers)
        loader = batches(source.read_train()[0], augmentation=how)
        seen.append([pixels for pixels, _ in loader.epoch(1, start=start)])
    assert [len(part) for part in seen] == [4, 4, 2]
    assert all(torch.equal(a, b) for a, b in zip(seen[0], seen[1], strict=True))
    assert all(torch.equal(a, b) for a, b in zip(seen[0][2:], seen[2], strict=True))
    other = [pixels for pixels, _ in loader.epoch(2)]
    assert not torch.equal(seen[0][0], other[0])


def test_constants_are_measured_once_and_kept(folder, monkeypatch):
    for memory in (0.0, 4.0):
        source = dataset("imagefolder", folder / f"cache{memory}", root=str(folder), memory_gb=memory)
        first = split(source, 0)
        truth = source.hold(first.train).load().pixels.double() / 255
        torch.testing.assert_close(torch.tensor(first.normalization.mean, dtype=torch.double), truth.mean((0, 2, 3)))
        torch.testing.assert_close(torch.tensor(first.normalization.std, dtype=torch.double), truth.std((0, 2, 3), correction=0))
        with monkeypatch.context() as patch:
            patch.setattr("rlprune.data.imagefolder.measure_normalization", None)  # not called again
            assert split(source, 0).normalization == first.normalization


def test_pictures_are_resized_and_cut_as_torchvision_does(folder):
    from torchvision.transforms import v2

    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 61, 3), dtype=np.uint8))
    picture.save(folder / "train/cat/1.png")
    found = dataset("imagenet", folder / "cache", root=str(folder), image_size=32, resize=40).read_train()[0].load().pixels[1]
    wanted = v2.Compose([v2.Resize(40), v2.CenterCrop(32), v2.PILToTensor()])(picture)
    assert (found.int() - wanted.int()).abs().max() <= 1


def test_a_limit_decodes_no_more_than_it_needs(folder, monkeypatch):
    opened = []
    from rlprune.data import files

    real = files.open_picture
    monkeypatch.setattr(files, "open_picture", lambda path: opened.append(path) or real(path))
    splits = split(dataset("imagefolder", folder / "cache", root=str(folder), limit=6, search_fraction=0.5), 0)
    assert (len(opened), len(splits.train), len(splits.search)) == (6, 3, 3)


def test_resized_crops_are_windows_of_the_image():
    pixels = (torch.arange(32).view(1, 1, 32, 1) * 8 + torch.zeros(200, 3, 32, 32)).byte()  # each row its own grey
    images = Images(pixels, torch.zeros(200, dtype=torch.long))
    ((batch, _),) = batches(images, batch_size=200, augmentation=Augmentation(resized_crop=(0.25, 0.25))).epoch(0)
    rows = (batch * 255)[:, 0, :, 16]
    heights = (rows[:, -1] - rows[:, 0]) / 8 * 32 / 31  # rows of the image that the window shows
    assert ((heights > 32 * 0.43 - 1.5) & (heights < 32 * 0.58 + 1.5)).all()  # √(1/4 · 3/4) to √(1/4 · 4/3)
    assert heights.std() > 0.5
    assert rows[:, 0].std() > 10
    ((whole, _),) = batches(images, batch_size=200, augmentation=Augmentation(resized_crop=(1.0, 1.0))).epoch(0)
    assert whole.shape == batch.shape


def test_randaugment_changes_images_and_not_the_global_stream():
    images, plain = coloured(64, 16), torch.get_rng_state()
    pictures = Images(torch.randint(0, 255, (64, 3, 16, 16), dtype=torch.uint8), images.labels)
    state = torch.get_rng_state()
    how = {"batch_size": 64, "augmentation": Augmentation(randaugment=15)}
    ((first, _),), ((again, _),) = batches(pictures, **how).epoch(0), batches(pictures, **how).epoch(0)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(state, plain)
    assert torch.equal(first, again)
    ((unchanged, _),) = batches(pictures, batch_size=64).epoch(0)
    assert (first != unchanged).flatten(1).any(1).float().mean() > 0.5


@pytest.mark.parametrize("how", [{"mixup": 1.0}, {"cutmix": 1.0}, {"mixup": 0.5, "cutmix": 0.5}])
def test_mixed_labels_are_the_shares_of_the_images(how):
    images = Images((torch.arange(2).view(2, 1, 1, 1) * 255).expand(-1, 3, 16, 16).byte().repeat(8, 1, 1, 1), torch.arange(2).repeat(8))
    mixed = 0
    for number in range(20):
        for batch, labels in batches(images, batch_size=16, augmentation=Augmentation(**how)).epoch(number):
            torch.testing.assert_close(labels.sum(1), torch.ones(16))
            torch.testing.assert_close(batch.mean((1, 2, 3)), labels[:, 1], atol=0.01, rtol=0)
            mixed += int(((labels > 0.01) & (labels < 0.99)).any())
    assert mixed > 5


def test_labels_beyond_the_classes_are_refused():
    for labels, text in (([0, 2, 1, 0], "label 2"), ([0, -1, 1, 0], "label -1")):
        source = dataset()
        source.read_train = lambda labels=labels: (Images(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.tensor(labels)), ("a", "b"))
        with pytest.raises(UserError, match=f"its training split has the {text}, there are 2 classes"):
            split(source, 0)


def test_every_class_keeps_a_training_image_and_rare_ones_are_told_of(caplog):
    labels = torch.tensor([0] * 40 + [1, 1, 2])
    source = dataset(search_fraction=0.5)
    source.read_train = lambda: (Images(torch.zeros(43, 3, 8, 8, dtype=torch.uint8), labels), ("a", "b", "c"))
    for seed in range(8):
        splits = split(source, seed)
        assert set(splits.train.labels.tolist()) == {0, 1, 2}
        assert len(splits.train) + len(splits.search) == 43
    assert "have no image in the search split (c)" in caplog.text


def test_hidden_folders_are_left_alone(folder):
    source = dataset("imagefolder", folder / "cache", root=str(folder))
    before = source.read_train()[0].paths
    (folder / "train/cat/.ipynb_checkpoints").mkdir()
    (folder / "train/cat/.ipynb_checkpoints/1-checkpoint.png").write_bytes((folder / "train/cat/1.png").read_bytes())
    assert source.read_train()[0].paths == before


def test_names_that_are_no_text_are_read(folder):
    name = os.fsencode(folder / "train/cat") + b"/odd\xff.png"
    with open(name, "wb") as file:
        file.write((folder / "train/cat/1.png").read_bytes())
    source = dataset("imagefolder", folder / "cache", root=str(folder))
    assert len(source.hold(source.read_train()[0])) == 17


def test_a_stream_takes_nothing_from_the_global_stream(folder):
    files = dataset("imagefolder", folder / "cache", root=str(folder), memory_gb=0.0, num_workers=0).read_train()[0]
    state = torch.get_rng_state()
    list(files.stream([[(0, 0)]], None, torch.device("cpu")))
    list(batches(files, augmentation=Augmentation(resized_crop=(0.3, 1.0), randaugment=9)).epoch(0))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_changed_folder_is_decoded_again(folder):
    source = dataset("imagefolder", folder / "cache", root=str(folder))
    before = source.hold(source.read_train()[0])
    Image.new("L", (32, 32), 7).save(folder / "train/cat/1.png")
    os.utime(folder / "train/cat/1.png", (time.time() + 5,) * 2)
    after = source.hold(source.read_train()[0])
    assert (after.pixels[1] == 7).all()
    assert not torch.equal(before.pixels, after.pixels)


def test_images_of_other_kinds_are_read_right(folder):
    values = (np.arange(1024).reshape(32, 32) * 64).astype(np.uint16)
    Image.fromarray(values).save(folder / "train/cat/1.png")
    Image.fromarray((values >> 8).astype(np.uint8)).convert("P").save(folder / "train/cat/2.png")
    Image.new("RGBA", (32, 32), (9, 8, 7, 0)).save(folder / "train/cat/3.png")
    (folder / "train/cat/._4.png").write_bytes(b"resource fork")
    pixels = dataset("imagefolder", folder / "cache", root=str(folder)).read_train()[0].load().pixels
    np.testing.assert_allclose(pixels[1, 0].numpy(), values / 257, atol=0.51)
    np.testing.assert_array_equal(pixels[2, 0].numpy(), values >> 8)
    assert pixels[3, :, 0, 0].tolist() == [9, 8, 7]
    Image.fromarray(np.zeros((32, 32), np.float32)).save(folder / "train/cat/5.tiff")
    with pytest.raises(UserError, match=r"5\.tiff: is no readable image \(32-bit"):
        dataset("imagefolder", folder / "cache", root=str(folder)).read_train()[0].load()


def test_broken_folders_are_named(folder):
    source = dataset("imagefolder", folder / "cache", root=str(folder))
    (folder / "train/dog/x.jpg").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"train/dog/x\.jpg: is no readable image"):
        source.hold(source.read_train()[0])
    (folder / "train/empty").mkdir()
    with pytest.raises(UserError, match="empty: holds no images"):
        source.read_train()
    (folder / "val/bird").mkdir()
    with pytest.raises(UserError, match="bird: is a class that"):
        source.check_test()
    with pytest.raises(UserError, match="has no folder"):
        dataset("imagefolder", folder / "cache", root=str(folder / "nowhere")).read_train()
    (folder / "only/train/cat").mkdir(parents=True)
    (folder / "bare/train").mkdir(parents=True)
    with pytest.raises(UserError, match="neither a folder test nor val"):
        dataset("imagefolder", folder / "cache", root=str(folder / "only")).check_test()
    with pytest.raises(UserError, match="no class folders"):
        dataset("imagefolder", folder / "cache", root=str(folder / "bare")).read_train()


def test_absent_cifar_says_where_it_looked(tmp_path, monkeypatch):
    def offline(*arguments, **settings):
        raise OSError("offline")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", offline)
    with pytest.raises(UserError, match=rf"not found in {tmp_path}.*cifar-10-python\.tar\.gz"):
        dataset("cifar10", data=tmp_path).read_train()


def test_cifar_files_are_read(tmp_path, monkeypatch):
    import torchvision

    class Fake:
        filename = "x.tar.gz"
        classes = ("a", "b")

        def __init__(self, root, train, download):
            self.data = np.arange(2 * 32 * 32 * 3, dtype=np.uint8).reshape(2, 32, 32, 3)
            self.targets = [1, 0] if train else [0, 1]

    assert issubclass(torchvision.datasets.CIFAR100, torchvision.datasets.CIFAR10)
    monkeypatch.setattr("rlprune.data.cifar.CIFAR100", Fake)
    source = dataset("cifar100", data=tmp_path)
    images, names = source.read_train()
    assert names == ("a", "b")
    assert images.labels.tolist() == [1, 0]
    assert source.read_test().labels.tolist() == [0, 1]
    assert images.pixels[0, :, 0, 0].tolist() == [0, 1, 2]


def test_a_limit_that_leaves_the_search_split_empty_is_refused():
    with pytest.raises(UserError, match=r"its search split would be empty, .* raise dataset\.limit or add images"):
        split(dataset("digits", limit=10), 0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"search_fraction": 1.0}, r"dataset\.search_fraction=1\.0: must be in \(0, 1\)"),
        ({"crop": -1}, r"dataset\.crop=-1"),
        ({"limit": 1}, r"dataset\.limit=1"),
        ({"std": [0.0, 1.0, 1.0]}, r"dataset\.std"),
        ({"mean": [128.0, 128.0, 128.0]}, r"dataset\.mean=.*must be in \[0, 1\]"),
        ({"image_size": 4}, r"dataset\.image_size=4"),
        ({"resized_crop": [0.5]}, r"dataset\.resized_crop=\[0\.5\]"),
        ({"resized_crop": [0.5, 1.0]}, r"dataset\.crop=2: goes not with resized_crop"),
        ({"image_size": "big"}, r"dataset\.image_size=big: must be an integer"),
    ],
)
def test_wrong_settings_name_their_key(settings, message):
    with pytest.raises(UserError, match=message):
        dataset(**settings)


def test_crops_are_smaller_than_the_images():
    with pytest.raises(UserError, match=r"dataset\.crop=40: must be smaller than the images"):
        split(dataset(crop=40), 0)


def test_too_few_images_are_refused():
    with pytest.raises(UserError, match="leaves too few of 2 images for both splits"):
        split(dataset(limit=2), 0)
