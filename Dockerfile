# The demo on the processor, as a user without rights. It listens on loopback only, hence `--network host`:
#   docker build --tag leukoscope . && docker run --rm --network host leukoscope
FROM python:3.12-slim

WORKDIR /app
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 GRADIO_ANALYTICS_ENABLED=False

# Builds without CUDA are gigabytes smaller; the two must come from one index.
RUN python -m pip install --index-url https://download.pytorch.org/whl/cpu "torch>=2.6" "torchvision>=0.21"
COPY requirements.txt ./
RUN python -m pip install -r requirements.txt

COPY app.py LICENSE ./
COPY src/ src/
COPY model_card/ model_card/

RUN useradd --create-home leukoscope
USER leukoscope
EXPOSE 7860
HEALTHCHECK --interval=30s --timeout=10s --start-period=120s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as u; u.urlopen('http://127.0.0.1:' + os.environ.get('GRADIO_SERVER_PORT', '7860'), timeout=5)"]
CMD ["python", "app.py"]
