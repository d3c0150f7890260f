"""A sealed graph as a model of Triton's Python backend."""

from __future__ import annotations

import json
from pathlib import Path

import triton_python_backend_utils as pb_utils

from keyseg_mm import KeysegError
from keyseg_mm.deploy import load


class TritonPythonModel:
    """Opens the graph once for each instance, and runs it for each request."""

    def initialize(self, args):
        said = json.loads(args['model_config'])['parameters']
        folder = Path(args['model_repository'], args['model_version'])
        try:
            self.session = load(folder / said['graph']['string_value'], key=said['key']['string_value'])
        except KeysegError as error:  # its words name no secret
            raise pb_utils.TritonModelException(str(error)) from None
        self.output = self.session.get_outputs()[0].name

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        image = pb_utils.get_input_tensor_by_name(request, 'image').as_numpy()
        try:
            found = self.session.run(None, {'image': image})[0]
        except Exception as error:  # of the runtime: an image of another size, say
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error)))
        return pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor(self.output, found)])

    def finalize(self):
        del self.session
