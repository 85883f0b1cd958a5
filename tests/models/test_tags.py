"""Published weights: the table, and which tag a source means."""

from pathlib import Path

import pytest

from models import list_models, model_settings, tags
from models.tags import STATISTICS, find_tag, tags_of

EVERY = [tag for name in list_models() for tag in tags_of(name)]


def test_every_line_of_the_table_is_valid_and_belongs_to_a_model():
    table = Path(tags.__file__).with_name('pretrained_tags.csv').read_text().splitlines()
    assert len(table) - 1 == len(EVERY) == len({(tag.model, tag.tag) for tag in EVERY})
    for tag in EVERY:
        assert tag.statistics in STATISTICS and tag.crop_mode in ('center', 'squash')
        assert tag.interpolation in ('bicubic', 'bilinear')
        assert 0.5 < tag.crop_pct <= 1 and tag.classes >= 0
        size = model_settings(tag.model).get('img_size')
        assert size in (None, tag.image_size), tag


def test_the_large_eva_expects_the_statistics_of_clip_and_the_whole_image():
    default = find_tag('eva02_large_patch14_448', 'default')
    assert default.tag == 'mim_in22k_ft_in22k_in1k' and default.classes == 1000
    assert default.mean == (0.48145466, 0.4578275, 0.40821073)
    assert default.std == (0.26862954, 0.26130258, 0.27577711)
    assert (default.image_size, default.crop_pct) == (448, 1.0)
    assert (default.crop_mode, default.interpolation) == ('squash', 'bicubic')
    for name in list_models('eva02_*'):
        assert all(tag.statistics == 'clip' for tag in tags_of(name))


def test_tags_with_other_statistics_than_those_of_imagenet():
    assert find_tag('eva_giant_patch14_336', 'm30m_ft_in22k_in1k').statistics == 'imagenet'
    assert find_tag('eva_giant_patch14_336', 'clip_ft_in1k').statistics == 'clip'
    assert find_tag('inception_resnet_v2', 'default').mean == (0.5, 0.5, 0.5)
    assert find_tag('efficientnet_b0', 'ra_in1k').statistics == 'imagenet'
    assert find_tag('efficientnet_b0', 'ra4_e3600_r224_in1k').statistics == 'half'
    assert find_tag('mobilenetv3_large_100', 'miil_in21k').std == (1.0, 1.0, 1.0)
    assert find_tag('beit_base_patch16_224', 'default').statistics == 'half'
    assert find_tag('beitv2_base_patch16_224', 'default').statistics == 'imagenet'
    aerial = find_tag('vit_large_patch16_dinov3', 'sat493m')
    assert (aerial.mean, aerial.std) == ((0.43, 0.411, 0.296), (0.213, 0.156, 0.143))
    assert (aerial.image_size, aerial.classes, aerial.license) == (256, 0, 'dinov3-license')
    assert find_tag('vit_tiny_patch16_dinov3_qkvb', 'default').license == (
        'fair-noncommercial-research-license')
    assert STATISTICS['imagenet'] == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.mark.parametrize('source', [
    'a3_in1k', 'resnet18.a3_in1k', 'timm/resnet18.a3_in1k', 'hf-hub:timm/resnet18.a3_in1k',
    'resnet18.a3_in1k.safetensors', '/weights/resnet18.a3_in1k.pth', 'a/b.c/resnet18.a3_in1k.bin',
    'weights/a3_in1k.pt',
])
def test_a_tag_a_repository_or_a_file_with_its_name_means_the_tag(source):
    tag = find_tag('resnet18', source)
    assert (tag.tag, tag.image_size) == ('a3_in1k', 160)
    assert tag.repository == 'timm/resnet18.a3_in1k'


@pytest.mark.parametrize('source', ['default', 'mine.safetensors', '/runs/model.pth', 'x.bin',
                                    'resnet50.a3_in1k.safetensors'])
def test_the_default_and_files_without_a_tag_mean_the_first_line(source):
    assert find_tag('resnet18', source) == tags_of('resnet18')[0]
    assert find_tag('resnet18', source).tag == 'a1_in1k'


@pytest.mark.parametrize('name, source', [
    ('resnet18', 'a9_in1k'), ('resnet18', ''), ('resnet18', 'resnet50.a3_in1k'),
    ('resnet18', 'somebody/resnet18.a3_in1k'), ('resnet18', 'hf-hub:somebody/a3_in1k'),
    ('resnet18', 'somebody/weights'), ('small_cnn', 'default'), ('small_cnn', 'x.safetensors'),
    ('no_model', 'default'),
])
def test_other_sources_mean_no_tag(name, source):
    assert find_tag(name, source) is None
