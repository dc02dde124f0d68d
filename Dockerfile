# The demo on the processor, as a user without rights. It listens on loopback only, hence `--network host`:
#   docker build --tag leukoscope . && docker run --rm --network host leukoscope
FROM python:3.12-slim

WORKDIR /app
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 GRADIO_ANALYTICS_ENABLED=False

# The versions that the tests were run with. Builds without CUDA are gigabytes smaller; the two must come from one index.
COPY requirements.txt requirements.lock ./
RUN python -m pip install --index-url https://download.pytorch.org/whl/cpu --constraint requirements.lock \
    "torch>=2.6" "torchvision>=0.21"
RUN python -m pip install --requirement requirements.txt --constraint requirements.lock

COPY app.py LICENSE ./
COPY src/ src/
COPY model_card/ model_card/

RUN useradd --create-home leukoscope
USER leukoscope
EXPOSE 7860
HEALTHCHECK --interval=30s --timeout=10s --start-period=120s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as u; u.urlopen('http://127.0.0.1:' + os.environ.get('GRADIO_SERVER_PORT', '7860'), timeout=5)"]
CMD ["python", "app.py"]
