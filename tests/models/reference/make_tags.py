"""Writes models/pretrained_tags.csv from an installed timm: what it records about the published
weights of each of our models. Run it after adding a model:

    python tests/models/reference/make_tags.py

Left out are weights that are not in the repository timm/<model>.<tag>, tags whose images have
another size than the model of their name, and CLIP towers that were trained with quick GELU under
the names without it.
"""

import csv
import re
import sys
from pathlib import Path, PurePosixPath

from timm.models import get_pretrained_cfg, list_pretrained

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT))

from models import list_models, model_settings  # noqa: E402
from models.tags import STATISTICS, repository_of  # noqa: E402
from models.timm_settings import in_timm  # noqa: E402


def row(name: str, tag: str) -> tuple | None:
    """One line of the table, or None for weights that are left out."""
    cfg = get_pretrained_cfg(f'{name}.{tag}')
    size = model_settings(name).get('img_size')
    if cfg.hf_hub_id != repository_of(name, tag) or size not in (None, cfg.input_size[1]):
        return None
    if any('natively QuickGELU' in note for note in cfg.notes or ()) and 'quickgelu' not in name:
        return None
    statistics = [word for word, pair in STATISTICS.items()
                  if pair == (tuple(cfg.mean), tuple(cfg.std))]
    if not statistics:
        sys.exit(f'{name}.{tag} has mean {cfg.mean} and std {cfg.std}: name them in '
                 f'models/tags.py.')
    return (name, tag, cfg.input_size[1], cfg.crop_pct, cfg.interpolation,
            'squash' if cfg.crop_mode == 'squash' else 'center', statistics[0], cfg.num_classes,
            cfg.license or '', file_name(cfg.url or ''))


def file_name(url: str) -> str:
    """What torch.hub calls the file at a URL in its cache, where it has timm's keys: those of
    timm's own releases, and torchvision's ResNets. The name ends as the SHA-256 begins."""
    name = PurePosixPath(url).name
    ours = '/pytorch-image-models/releases/' in url or \
        (url.startswith('https://download.pytorch.org/models/') and name.startswith('resnet'))
    return name if ours and re.fullmatch(r'.+-[0-9a-f]{8,64}\.pth', name) else ''


def main() -> None:
    with open(ROOT / 'models' / 'pretrained_tags.csv', 'w', newline='') as file:
        writer = csv.writer(file, lineterminator='\n')
        writer.writerow(['model', 'tag', 'image_size', 'crop_pct', 'interpolation', 'crop_mode',
                         'statistics', 'classes', 'license', 'file'])
        for name in filter(in_timm, list_models()):
            tags = [full.removeprefix(f'{name}.') for full in list_pretrained(f'{name}.*')]
            default = get_pretrained_cfg(name).tag
            for tag in sorted(tags, key=lambda tag: tag != default):
                line = row(name, tag)
                if line:
                    writer.writerow(line)


if __name__ == '__main__':
    main()
