# A GPU machine with TensorRT:
#   docker build -t mocomp .
#   docker run --rm --gpus all --user "$(id -u):$(id -g)" -e HOME=/tmp -v "$PWD:/work" mocomp build /work/DIR
# The user is the one of the mounted folder, which the image's own could not write into.
# The image brings the CUDA runtime, and pip TensorRT, in a release that mocomp knows (10.15 to 11.4). It was not built where this
# file was written: see docs/tensorrt.md.
ARG BASE=nvidia/cuda:13.0.1-runtime-ubuntu24.04
FROM ${BASE}

RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 10001 mocomp

WORKDIR /opt/mocomp
COPY pyproject.toml README.md LICENSE constraints.txt ./
COPY mocomp ./mocomp

# torch traces the model and runs the original on the CPU, and leaves the GPU to the engine
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG TENSORRT=11.4
RUN python3 -m venv /opt/venv \
    && /opt/venv/bin/pip install --no-cache-dir --extra-index-url "${TORCH_INDEX}" -c constraints.txt \
       ".[tensorrt]" "tensorrt==${TENSORRT}.*"

USER mocomp
WORKDIR /work
ENV PATH="/opt/venv/bin:${PATH}"
ENTRYPOINT ["mocomp"]
CMD ["--help"]
