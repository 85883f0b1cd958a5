"""Transparency as a fourth channel: what is read, what transforms do to it, what is refused."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from input_pipeline import contact_sheet, loader, pictures, sources, transforms
from input_pipeline.curriculum import make_stages
from input_pipeline.decode import NoTransparency, decode
from input_pipeline.manifest import make_manifest
from input_pipeline.pictures import PreprocessSpec
from input_pipeline.resize import INTERPOLATIONS, MODES, resize
from input_pipeline.sources import digits

PHOTO = np.ascontiguousarray(load_sample_image('china.jpg')[:120, :180])
ALPHA = np.tile(np.linspace(0, 255, 180).astype(np.uint8), (120, 1))
RGBA = np.dstack([PHOTO, ALPHA])
SIZE = (40, 56)
SPEC = dict(size=SIZE, mean=(0.5,) * 4, std=(0.5,) * 4)


def encoded(image, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, **options)
    return file.getvalue()


def manifest_of(folder, data: bytes, name: str):
    (folder / name).write_bytes(data)
    return make_manifest({'id': ['a'], 'location': [name], 'label/class': [0]},
                         {'class': ('x',)}, str(folder))


@pytest.fixture(scope='module')
def rgba(tmp_path_factory):
    return manifest_of(tmp_path_factory.mktemp('rgba'),
                       encoded(Image.fromarray(RGBA), format='PNG'), 'a.png')


def stage_of(*specs):
    return make_stages([{'transforms': specs}], None, 4)[0]


def test_what_is_transparent_keeps_its_colours_and_its_transparency():
    for options in (dict(format='PNG'), dict(format='WEBP', lossless=True, exact=True)):
        data = encoded(Image.fromarray(RGBA), **options)
        np.testing.assert_array_equal(decode(data, name='a', alpha=True), RGBA)
        assert decode(data, name='a').shape == (120, 180, 3)  # laid over white
    grey = encoded(Image.fromarray(RGBA[..., 2:]), format='PNG')  # grey and transparency
    np.testing.assert_array_equal(decode(grey, name='a', alpha=True), RGBA[..., [2, 2, 2, 3]])
    palette = Image.fromarray(np.array([[0, 1]], np.uint8), 'P')
    palette.putpalette([9, 8, 7, 6, 5, 4])
    data = encoded(palette, format='PNG', transparency=1)
    assert decode(data, name='a', alpha=True).tolist() == [[[9, 8, 7, 255], [6, 5, 4, 0]]]
    exif = Image.Exif()
    exif[0x0112] = 3
    turned = encoded(Image.fromarray(RGBA), format='PNG', exif=exif)
    np.testing.assert_array_equal(decode(turned, name='a', alpha=True), RGBA[::-1, ::-1])
    deep = cv2.imencode('.png', RGBA[..., [2, 1, 0, 3]].astype(np.uint16) * 16)[1].tobytes()
    found = decode(deep, name='a', alpha=True, range16=(0, 4095))
    np.testing.assert_array_equal(found[..., :3], PHOTO)


@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'WEBP', 'BMP', 'GIF'])
def test_a_picture_without_transparency_is_refused_by_name(tmp_path, kind):
    name = f'opaque.{kind.lower()}'
    manifest = manifest_of(tmp_path, encoded(Image.fromarray(PHOTO), format=kind), name)
    for unreadable in ('error', 'drop'):  # it can be read, so it is not dropped
        with pytest.raises(NoTransparency, match=rf"Image 'opaque.{kind.lower()}' has no transp"):
            next(loader.eval_dataset(manifest, PreprocessSpec(**SPEC), batch_size=1,
                                     loading=loader.LoaderSpec(unreadable=unreadable))())


def test_drawn_pictures_are_refused():
    with pytest.raises(NoTransparency, match='digits:3'):
        pictures.Pictures(digits.load(), PreprocessSpec(**SPEC))[3]


@pytest.mark.parametrize('interpolation', INTERPOLATIONS)
@pytest.mark.parametrize('mode', MODES)
def test_evaluation_sees_four_channels(rgba, mode, interpolation):
    """Each channel is resized for itself, whatever the interpolation."""
    spec = PreprocessSpec(**SPEC, resize=mode, interpolation=interpolation)
    batch, = loader.eval_dataset(rgba, spec, batch_size=1)()
    assert batch['image'].shape == (1, *SIZE, 4)
    for part in (slice(0, 3), slice(1, 4)):
        want = resize(np.ascontiguousarray(RGBA[..., part]), SIZE, mode,
                      interpolation=interpolation)
        assert np.abs(batch['image'][0, ..., part].astype(int) - want).max() <= 1


@pytest.mark.parametrize('kind', sorted(transforms.TRANSFORMS))
def test_colours_change_as_without_transparency_which_follows_the_geometry(kind):
    stage = stage_of({'kind': kind, 'p': 1})
    for seed in range(8 if 'augment' in kind else 2):
        plan = transforms.draw(stage.transforms, np.random.default_rng(seed), SIZE, (120, 180))
        four, three, alpha = (transforms.apply(plan, np.ascontiguousarray(picture), SIZE) for
                              picture in (RGBA, PHOTO, np.dstack([ALPHA] * 3)))
        assert four.shape == (*SIZE, 4)
        assert np.abs(four[..., :3].astype(int) - three).max() <= 1
        if transforms.TRANSFORMS[kind].group == 'geometry':
            assert np.abs(four[..., 3].astype(int) - alpha[..., 0]).max() <= 1
        elif transforms.TRANSFORMS[kind].group == 'erasing':
            plain = transforms.apply(transforms.Plan(), RGBA, SIZE)
            covered = (four[..., :3] != plain[..., :3]).any(2)
            assert (four[covered, 3] == 255).all() and covered.any()
        elif 'augment' not in kind:
            plain = transforms.apply(transforms.Plan(), RGBA, SIZE)
            np.testing.assert_array_equal(four[..., 3], plain[..., 3])


@pytest.mark.parametrize('border, colour', [('black', 0), ('white', 255)])
def test_what_lies_outside_is_opaque(border, colour):
    plan = transforms.draw(stage_of({'kind': 'zoom', 'factor': 0.5}).transforms,
                           np.random.default_rng(0), SIZE)
    found = transforms.apply(plan, RGBA, SIZE, border)
    assert found[0, 0].tolist() == [colour] * 3 + [255]


def test_stages_the_sheet_and_what_is_shown(rgba):
    stage = stage_of('rotate', {'kind': 'center_crop', 'share': 0.6})
    spec = PreprocessSpec(**SPEC)
    plain, kept = (pictures.Pictures(rgba, spec, mb) for mb in (0, 1))
    for _ in range(2):
        np.testing.assert_array_equal(
            *(found.augmented(0, stage, np.random.default_rng(1)) for found in (plain, kept)))
    assert plain.blank().shape == (*SIZE, 4)
    sheet = contact_sheet.contact_sheet([RGBA], contact_sheet.stage_rows([stage]), SIZE)
    assert sheet.shape[2] == 3 and len(np.unique(sheet)) > 50
    shown = pictures.as_rgb(RGBA)
    assert np.abs(shown.astype(int) - decode(sources.read_bytes(rgba.root, 'a.png'),
                                             name='a')).max() <= 1
