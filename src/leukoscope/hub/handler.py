"""A release on Hugging Face Inference Endpoints: a picture comes in, the decision and its Grad-CAM map go out.

`leukoscope release export --format endpoint` copies this file beside a release, with what it needs of the package in
`src/`. The server imports `EndpointHandler`, and answers an error with its message and HTTP status 400.
"""

from __future__ import annotations

import base64
import sys
from io import BytesIO
from pathlib import Path
from typing import Any


class EndpointHandler:
    """Predicts pictures of single cells.

    Args:
        path: folder of the release.
    """

    def __init__(self, path: str = ""):
        if (package := Path(__file__).parent / "src").is_dir():
            sys.path.insert(0, str(package))
        from leukoscope import Predictor

        self.predictor = Predictor.from_pretrained(path or str(Path(__file__).parent))

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        """Predict one picture.

        Args:
            data: `inputs` is the picture: a PIL image, as the server gives what was sent as image/png or the like, the
                bytes of an image file, or these in base64, as JSON sends them.

        Returns:
            what `Prediction.to_dict` gives (outcome, reasons, probabilities and more), `grad_cam_class`, and
            `grad_cam`, the map over the picture as a PNG file in base64; both None for a network without a map.

        Raises:
            LeukoscopeError: no picture, or one that cannot be used.
        """
        from PIL import Image

        from leukoscope import LeukoscopeError
        from leukoscope.data.images import EncodedImage

        picture = data.get("inputs")
        try:
            if isinstance(picture, str):
                text = picture.partition(",")[2] or picture
                picture = base64.b64decode("".join(text.split()), validate=True)  # it may be wrapped into lines
        except ValueError:  # binascii.Error among them
            raise LeukoscopeError("inputs: is no image file in base64; send the picture as image/png") from None
        if picture is None:
            raise LeukoscopeError("inputs: is missing; send the picture as image/png, or as base64 under inputs")
        if isinstance(picture, bytes):
            picture = EncodedImage(picture, "inputs")
        elif not isinstance(picture, Image.Image):
            # The predictor would open a path, which is this server's.
            raise LeukoscopeError("inputs: is no picture; send it as image/png, or as base64 under inputs")
        prediction = self.predictor(picture, explain=True)
        answer = prediction.to_dict() | {"source": "inputs", "grad_cam_class": None, "grad_cam": None}
        if prediction.heatmaps:
            png = BytesIO()
            prediction.overlay().save(png, "PNG")
            answer["grad_cam_class"] = prediction.most_probable
            answer["grad_cam"] = base64.b64encode(png.getvalue()).decode()
        return answer
