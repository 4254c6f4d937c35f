"""A source as the network takes it, whatever its weights are stored in: FP8 decoded, all else as it is.

For whoever runs a source: calibration, evaluation, the MTP check. The conversion itself reads rows (stream.py).
"""

from __future__ import annotations

import copy
from pathlib import Path

import mlx.core as mx

from mlx_qwen35.convert.layerwise import LayerwiseModel, Read
from mlx_qwen35.convert.parameters import network
from mlx_qwen35.convert.reading import Reader
from mlx_qwen35.convert.source import Source, open_source
from mlx_qwen35.models import off_metal
from mlx_qwen35.models.model import Model
from mlx_qwen35.models.tensor_names import Recipe
from mlx_qwen35.models.weights import _as_parameter, load_model


def opened(source: Source | Path) -> LayerwiseModel:
    """A checkpoint, original or converted, one module at a time.

    Raises UserError, one line, for a folder that is no checkpoint of the family.
    """
    source = open_source(source) if isinstance(source, Path) else source
    return LayerwiseModel(source.survey, decoder(source))


def loaded(source: Source) -> Model:
    """The whole network in memory, ready to run; a decoded one takes four bytes a weight."""
    read, survey = decoder(source), source.survey
    if read is None:
        return load_model(source.folder).model
    model = copy.deepcopy(survey.model)
    for target, recipe in survey.plan.recipes.items():
        value = _as_parameter(target, read(recipe), survey.conventions)
        mx.eval(value)
        model.load_weights([(target, value)], strict=False)
    model.eval()
    if not mx.metal.is_available():
        off_metal.prepare(model)
    return model


def decoder(source: Source) -> Read | None:
    """What makes a parameter of an FP8 source, in float32; None where plain tensors are stored."""
    if not source.scales.by_weight:
        return None
    parameters = {parameter.target: parameter for parameter in network(source)}

    def read(recipe: Recipe) -> mx.array:
        parameter = parameters[recipe.target]
        with Reader() as reader:
            rows = [reader.rows(span, parameter.width) for span in parameter.spans]
        return mx.concatenate(rows).reshape(parameter.shape)

    return read
