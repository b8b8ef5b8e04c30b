# lungsynth with its weights on CPU: docker build -t lungsynth .    See docs/how_to/container.md.
FROM python:3.12-slim

RUN useradd --create-home lungsynth
WORKDIR /opt/lungsynth
# PyTorch first and alone: its layer stays while the code changes.
RUN pip install --no-cache-dir --index-url https://download.pytorch.org/whl/cpu "torch==2.13.0"
COPY pyproject.toml setup.py README.md LICENSE ./
COPY lungsynth lungsynth
COPY evaluation evaluation
COPY bundles bundles
RUN pip install --no-cache-dir ".[bundles,tracking,dicom,shards]"

USER lungsynth
WORKDIR /data
ENV MLFLOW_DISABLE_TELEMETRY=true
ENTRYPOINT ["lungsynth"]
CMD ["--help"]
