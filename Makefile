# Every command a person runs; `make help` lists them. Each installs the Debian packages it needs:
# nothing but git and make has to be there.

CFLAGS = -std=c11 -O3 -fno-trapping-math
LUA = lua5.4
PROVE = prove --timer -j2
SEED = 0

GENERATE_PACKAGES = gcc libc6-dev lua5.4 lua-argparse lua-cjson lua-filesystem unicode-data
FETCH_PACKAGES = ca-certificates python3-pip xz-utils
TEST_PACKAGES = binutils bzip2 clang clang-format clang-tidy g++ gcc-aarch64-linux-gnu \
    libc6-dev-arm64-cross lua-check perl qemu-user shellcheck
COST_PACKAGES = gnuplot-nox python3-scipy

FETCHED = out/data
GGUF = $(FETCHED)/SmolLM2-135M-Instruct.Q4_1.gguf
ADAPTERS = $(foreach p,2 4 8,$(FETCHED)/adapter_p$(p).safetensors)
CUBIN = out/tools/cubin
NVRTC = out/nvrtc
DEMO = out/smollm2-135m
DEMO_INT4 = out/smollm2-135m-int4

.PHONY: help setup demo model specs test lint bench cost cost-measured law choose quality clean
.DELETE_ON_ERROR:
.SECONDARY:

help:
	@echo 'make demo     fetch SmolLM2-135M, make its engine, write Python with 4, 1 and 8 streams'
	@echo 'make model    FROM=DIR|GGUF|random [ADAPTER="FILE|DIR ..."] [SPEC="NAME|FILE ..."]'
	@echo '              [NAME=NAME] [SEED=N] [SM="87 90"]'
	@echo '              make out/NAME/: engine, model.psc, their sources, report.md;'
	@echo '              SM: GPU architectures to compile the kernels for now'
	@echo 'make specs    list the models that SPEC may name: parameters, bytes, KV bytes'
	@echo 'make test     run all tests (TAP, prove); lint is one of them'
	@echo 'make emulate  FROM=DIR  run the CUDA kernels of a golden folder on the CPU and compare'
	@echo 'make test-gpu         run the tests that need an NVIDIA GPU, on a machine that has one'
	@echo 'make test-gpu-folder  make the folder from which they run elsewhere'
	@echo 'make lint     clang-format, clang-tidy, luacheck, shellcheck'
	@echo 'make bench    measure decode, prefill and start; LLAMA=1 compares with llama.cpp'
	@echo 'make bench-gpu        measure the engines of SIZES ("0.7B 1.8B 4.7B") and DTYPES ("bf16 int8 int4") on'
	@echo '              an NVIDIA GPU, and PyTorch where it is; write the tables of docs/performance.md'
	@echo 'make bench-gpu-folder make the folder from which that runs elsewhere'
	@echo 'make bench-gpu-tables CSV=FILE  write the tables from what was measured elsewhere'
	@echo 'make cost     [MODEL=NAME|FILE] [GPU=a100|...|cpu] [CORPUS=python|pile]'
	@echo '              memory and latency of P streams against a larger model; CSV and SVG'
	@echo 'make cost-measured [MODEL=NAME|FILE]   the same measured here, with random weights'
	@echo 'make law      [DATA=CSV] [N=N P=P]     fit the scaling law to losses, predict one'
	@echo 'make choose   LOSS=LOSS GPU=... [MEMORY=GB] [BATCH=N] [CORPUS=python|pile]'
	@echo '              the published model that meets a loss at least memory, least latency'
	@echo 'make quality  nats a token on held-out Python, SmolLM2 with P = 1, 2, 4, 8'
	@echo 'make setup    install the Debian packages that any of these needs'
	@echo 'make clean    remove out/'

# ---- what is installed ---------------------------------------------------------------------------

setup:
	@codegen/install.sh $(GENERATE_PACKAGES) $(FETCH_PACKAGES) $(TEST_PACKAGES) $(COST_PACKAGES)

.PHONY: setup-generate setup-fetch setup-cost
setup-generate: ; @codegen/install.sh $(GENERATE_PACKAGES)
setup-fetch: ; @codegen/install.sh $(GENERATE_PACKAGES) $(FETCH_PACKAGES)
setup-cost: ; @codegen/install.sh $(GENERATE_PACKAGES) $(COST_PACKAGES)

# ---- from a checkpoint to a model ----------------------------------------------------------------

# The generator runs each time and changes only files that come out different; the rest follows.
model: setup-generate
	@test -n '$(FROM)' || { echo 'make model: FROM is missing: a Hugging Face folder, a GGUF' \
	    'file, or random with SPEC' >&2; exit 2; }
	@$(if $(SM),codegen/install.sh $(FETCH_PACKAGES) && \
	    $(MAKE) --silent --no-print-directory $(CUBIN))
	@echo 'generating the engine from $(FROM)'
	@folder=$$($(if $(SM),nvrtc=$$(codegen/find_nvrtc.sh $(NVRTC)) &&) \
	    $(LUA) codegen/main.lua --from '$(FROM)' $(ADAPTER:%=--adapter '%') \
	    $(SPEC:%=--spec '%') $(if $(NAME),--name '$(NAME)') \
	    $(if $(SM),--sm '$(SM)' --cubin $(CUBIN) --nvrtc "$$nvrtc")) && \
	codegen/choose_weights.sh "$$folder" '$(FROM)' '$(SEED)' && \
	$(MAKE) --silent --no-print-directory "$$folder/engine" "$$folder/model.psc" && \
	echo "made $$folder: $$folder/engine --help"

# What compiles kernels for the architectures of SM: engine.cu to machine code, by NVRTC.
$(CUBIN): codegen/cubin.c runtime/cuda_driver.c runtime/cuda_driver.h
	@mkdir -p $(dir $@)
	@$(CC) $(CFLAGS) -D_GNU_SOURCE -o $@ $< -ldl

out/%/engine: out/%/engine.c
	@echo 'compiling $@'
	@$(CC) $(CFLAGS) -o $@.part $< -lm -pthread -ldl && mv $@.part $@

out/%/pack: out/%/pack.c
	@echo 'compiling $@'
	@$(CC) $(CFLAGS) -o $@.part $< -lm -pthread && mv $@.part $@

# The packer writes a file of another name and renames it when it is complete.
out/%/model.psc: out/%/pack out/%/pack.job
	@echo 'packing $@'
	@$< out/$*/pack.job $@

out/%/model.psc: out/%/pack out/%/pack.seed
	@echo 'packing $@: random weights'
	@$< --random "$$(cat out/$*/pack.seed)" $@

specs: setup-generate
	@$(LUA) codegen/specs.lua

# ---- the demo: SmolLM2-135M with P = 1, 2, 4 and 8 in one engine ---------------------------------

$(GGUF):
	@codegen/fetch_smollm2.sh $@

$(FETCHED)/%.safetensors: tests/data/smollm2/%.safetensors.xz
	@mkdir -p $(FETCHED)
	@xz -dc $< >$@

.PHONY: demo-model
demo-model: setup-fetch $(GGUF) $(ADAPTERS)
	@$(MAKE) --no-print-directory model FROM=$(GGUF) ADAPTER="$(ADAPTERS)" \
	    SPEC=SmolLM2-135M-ParScale NAME=$(notdir $(DEMO))

demo: demo-model
	@codegen/demo.sh $(DEMO)/engine

# The same with the GGUF's own blocks of 4 bits, for measurements.
.PHONY: demo-int4
demo-int4: setup-fetch $(GGUF) $(ADAPTERS)
	@$(MAKE) --no-print-directory model FROM=$(GGUF) ADAPTER="$(ADAPTERS)" \
	    SPEC=SmolLM2-135M-ParScale-int4 NAME=$(notdir $(DEMO_INT4))

# ---- tests ---------------------------------------------------------------------------------------

# The longest first, so that none is left when all others are done.
TESTS = $(sort $(wildcard tests/*.t))
LONGEST = $(addprefix tests/,emulate.t emulate_faults.t specs.t cubins.t real.t sanitize.t)
test: setup demo-model
	@codegen/find_nvrtc.sh $(NVRTC) >/dev/null
	@CUDA_VISIBLE_DEVICES= ENGINE_DIR=$(DEMO) PARSCALE_GGUF=$(GGUF) $(PROVE) $(LONGEST) \
	    $(filter-out $(LONGEST),$(TESTS))

# tests/lint.t runs these four.
.PHONY: lint-format lint-tidy lint-lua lint-shell
lint: setup lint-format lint-tidy lint-lua lint-shell

lint-format:
	@clang-format --dry-run -Werror codegen/*.c templates/*.[ch] templates/*.cu runtime/*.[ch] tests/*.[ch] \
	    tests/emulator/*.cc tests/emulator/*.h docs/*.c

lint-tidy:
	@folder=$$($(LUA) codegen/main.lua --from random --spec SmolLM2-135M-ParScale) && \
	clang-tidy --quiet --config-file=.clang-tidy "$$folder/engine.c" "$$folder/pack.c" -- \
	    -std=c11

lint-lua:
	@luacheck --quiet codegen model_specs tests $$(grep -l '^#!/usr/bin/env lua' tests/*.t)

lint-shell:
	@shellcheck .ci/run codegen/*.sh tests/*.sh $$(grep -l '^#!/bin/sh' tests/*.t)

# What a machine with a GPU, CUDA and gcc needs for its tests: one folder.
GPU_FOLDER = out/gpu
GPU_SPECS = ParScale-1.8B-P8 ParScale-1.8B-P8:int8 ParScale-1.8B-P8:int4 \
    ParScale-1.8B-P8:bf16:int8
.PHONY: test-gpu-folder test-gpu
test-gpu-folder: demo-model
	@rm -rf $(GPU_FOLDER)
	@tests/gpu_prepare.sh $(GPU_FOLDER) $(DEMO) $(GPU_SPECS)
	@echo 'made $(GPU_FOLDER): there, sh tests/gpu.sh RESULTS'

test-gpu: test-gpu-folder
	@cd $(GPU_FOLDER) && sh tests/gpu.sh results

# The kernels of a golden folder, or of a checkpoint with expected.safetensors, under the emulator.
.PHONY: emulate
emulate:
	@codegen/install.sh $(GENERATE_PACKAGES) g++
	@test -n '$(FROM)' || { echo 'make emulate: FROM is missing: a folder of tests/data/golden' >&2; \
	    exit 2; }
	@$(LUA) tests/emulate_folder.lua '$(FROM)'

# ---- measurements --------------------------------------------------------------------------------

# LLAMA=1 builds llama.cpp once and measures it in turns with the engine; LLAMA_BIN names a folder
# with its programs where they are.
bench: demo-model demo-int4
	@$(if $(LLAMA),codegen/install.sh cmake g++ make && tests/build_llama.sh out/llama)
	@LLAMA_BIN=$(or $(LLAMA_BIN),$(if $(LLAMA),out/llama/bin)) \
	    $(LUA) tests/bench.lua $(DEMO) $(DEMO_INT4) $(GGUF)

# Measured on the machine where it runs: every P of every size and dtype, to one CSV.
SIZES = 0.7B 1.8B 4.7B
DTYPES = bf16 int8 int4
CSV = $(GPU_FOLDER)/results/bench.csv
.PHONY: bench-gpu bench-gpu-folder bench-gpu-tables
bench-gpu-folder: setup-generate
	@tests/gpu_bench_prepare.sh $(GPU_FOLDER) '$(SIZES)' '$(DTYPES)'
	@echo 'made $(GPU_FOLDER): there, sh tests/gpu_bench.sh RESULTS'

bench-gpu: bench-gpu-folder
	@cd $(GPU_FOLDER) && sh tests/gpu_bench.sh results || echo 'some of it could not be measured' >&2
	@$(MAKE) --no-print-directory bench-gpu-tables

bench-gpu-tables:
	@codegen/install.sh lua5.4 gnuplot-nox
	@$(LUA) tests/gpu_tables.lua docs/performance.md docs/gpu.svg '$(CSV)' tests/data/gpu_earlier.csv

# ---- what streams cost, and what they bring ------------------------------------------------------

cost: MODEL = ParScale-1.8B-P1
cost-measured: MODEL = SmolLM2-135M
GPU_OPTION = $(if $(GPU),--gpu '$(GPU)') $(if $(filter cpu,$(GPU)),--engine $(DEMO)/engine)
CORPUS_OPTION = $(CORPUS:%=--corpus '%')
# Of a spec's path, the file's name without .lua.
COST = out/cost/$(patsubst %.lua,%,$(notdir $(MODEL)))

# The plot shows one device.
cost: setup-cost $(if $(filter cpu,$(GPU)),demo-model)
	@mkdir -p out/cost
	@$(LUA) codegen/cost_main.lua cost --model '$(MODEL)' $(GPU_OPTION) $(CORPUS_OPTION) \
	    --csv '$(COST).csv'
	@gnuplot -e "csv='$(COST).csv'; svg='$(COST).svg'; device='$(or $(GPU),a100)'" \
	    -e "title='$(notdir $(COST)) on $(or $(GPU),a100), one request'" codegen/cost.gp
	@echo 'wrote $(COST).csv $(COST).svg'

# ROUNDS, THREADS, LENGTHS and TOKENS as in tests/cost_measured.sh.
cost-measured: setup-generate
	@tests/cost_prepare.sh '$(COST)' '$(MODEL)'
	@tests/cost_measured.sh '$(COST)'

law: setup-cost
	@codegen/fit_law.py $(or $(DATA),model_specs/losses.csv) $(if $(N),--predict $(N) $(or $(P),1))

choose: setup-generate $(if $(filter cpu,$(GPU)),demo-model)
	@test -n '$(LOSS)' -a -n '$(GPU)' || { echo 'make choose: LOSS or GPU is missing' >&2; exit 2; }
	@$(LUA) codegen/cost_main.lua choose --loss '$(LOSS)' $(GPU_OPTION) $(CORPUS_OPTION) \
	    $(if $(MEMORY),--memory '$(MEMORY)') $(if $(BATCH),--batch '$(BATCH)')

$(FETCHED)/meld:
	@codegen/fetch_heldout.sh $@

quality: demo-model $(FETCHED)/meld
	@$(LUA) tests/quality.lua $(DEMO) $(FETCHED)/meld

clean:
	rm -rf out
