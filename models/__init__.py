"""Models: a name and settings in, a Flax NNX module from images to logits out."""

from models.errors import ModelError
from models.registry import create_model, eval_view, list_models, model_settings

__all__ = ['ModelError', 'create_model', 'eval_view', 'list_models', 'model_settings']
