"""Models: from a name and settings to a Flax NNX module that maps images to logits."""

from models.errors import ModelError
from models.registry import create_model, eval_view, list_models, model_settings

__all__ = ['ModelError', 'create_model', 'eval_view', 'list_models', 'model_settings']
