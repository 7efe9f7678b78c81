# Every command a person runs; `make help` lists them. Each installs the Debian packages it needs:
# nothing but git and make has to be there.

CFLAGS = -std=c11 -O3 -fno-trapping-math
LUA = lua5.4
PROVE = prove --timer
SEED = 0

GENERATE_PACKAGES = gcc libc6-dev lua5.4 lua-argparse lua-cjson lua-filesystem unicode-data
FETCH_PACKAGES = ca-certificates python3-pip xz-utils
TEST_PACKAGES = binutils bzip2 clang clang-format clang-tidy g++ gcc-aarch64-linux-gnu \
    libc6-dev-arm64-cross lua-check perl qemu-user shellcheck

DATA = out/data
GGUF = $(DATA)/SmolLM2-135M-Instruct.Q4_1.gguf
ADAPTERS = $(foreach p,2 4 8,$(DATA)/adapter_p$(p).safetensors)
DEMO = out/smollm2-135m-p4
DEMO_ALL = out/smollm2-135m
DEMO_INT4 = out/smollm2-135m-int4

.PHONY: help setup demo model demo-all test lint bench clean
.DELETE_ON_ERROR:
.SECONDARY:

help:
	@echo 'make demo     fetch SmolLM2-135M, make its engine with four streams, write some Python'
	@echo 'make model    FROM=DIR|GGUF|random [ADAPTER="FILE ..."] [SPEC=FILE] [NAME=NAME] [SEED=N]'
	@echo '              make out/NAME/: engine, model.psc, their sources, report.md'
	@echo 'make test     run all tests (TAP, prove); lint is one of them'
	@echo 'make lint     clang-format, clang-tidy, luacheck, shellcheck'
	@echo 'make bench    measure decode, prefill and start; LLAMA=1 compares with llama.cpp'
	@echo 'make setup    install the Debian packages that any of these needs'
	@echo 'make clean    remove out/'

# ---- what is installed ---------------------------------------------------------------------------

setup: ; @codegen/install.sh $(GENERATE_PACKAGES) $(FETCH_PACKAGES) $(TEST_PACKAGES)

.PHONY: setup-generate setup-fetch
setup-generate: ; @codegen/install.sh $(GENERATE_PACKAGES)
setup-fetch: ; @codegen/install.sh $(GENERATE_PACKAGES) $(FETCH_PACKAGES)

# ---- from a checkpoint to a model ----------------------------------------------------------------

# The generator runs each time and changes only files that come out different; the rest follows.
model: setup-generate
	@test -n '$(FROM)' || { echo 'make model: FROM is missing: a Hugging Face folder, a GGUF' \
	    'file, or random with SPEC' >&2; exit 2; }
	@echo 'generating the engine from $(FROM)'
	@folder=$$($(LUA) codegen/main.lua --from '$(FROM)' $(ADAPTER:%=--adapter '%') \
	    $(if $(SPEC),--spec '$(SPEC)') $(if $(NAME),--name '$(NAME)')) && \
	codegen/choose_weights.sh "$$folder" '$(FROM)' '$(SEED)' && \
	$(MAKE) --silent --no-print-directory "$$folder/engine" "$$folder/model.psc" && \
	echo "made $$folder: $$folder/engine --help"

out/%/engine: out/%/engine.c
	@echo 'compiling $@'
	@$(CC) $(CFLAGS) -o $@.part $< -lm -pthread && mv $@.part $@

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

# ---- the demo: SmolLM2-135M with four streams ----------------------------------------------------

$(GGUF):
	@codegen/fetch_smollm2.sh $@

$(DATA)/%.safetensors: tests/data/smollm2/%.safetensors.xz
	@mkdir -p $(DATA)
	@xz -dc $< >$@

.PHONY: demo-model
demo-model: setup-fetch $(GGUF) $(DATA)/adapter_p4.safetensors
	@$(MAKE) --no-print-directory model FROM=$(GGUF) ADAPTER=$(DATA)/adapter_p4.safetensors \
	    NAME=$(notdir $(DEMO))

demo: demo-model
	@echo 'four streams write Python:'
	@codegen/demo.sh $(DEMO)/engine

# The same with P = 1, 2, 4 and 8 in one engine: for tests and measurements.
demo-all: setup-fetch $(GGUF) $(ADAPTERS)
	@$(MAKE) --no-print-directory model FROM=$(GGUF) ADAPTER="$(ADAPTERS)" \
	    SPEC=model_specs/smollm2-135m-streams.lua NAME=$(notdir $(DEMO_ALL))

# And that one with the GGUF's blocks of 4 bits as they are: for measurements.
.PHONY: demo-int4
demo-int4: setup-fetch $(GGUF) $(ADAPTERS)
	@$(MAKE) --no-print-directory model FROM=$(GGUF) ADAPTER="$(ADAPTERS)" \
	    SPEC=model_specs/smollm2-135m-int4.lua NAME=$(notdir $(DEMO_INT4))

# ---- tests ---------------------------------------------------------------------------------------

test: setup demo-model demo-all
	@ENGINE_DIR=$(DEMO) STREAMS_DIR=$(DEMO_ALL) PARSCALE_GGUF=$(GGUF) $(PROVE) tests

# tests/lint.t runs these four.
.PHONY: lint-format lint-tidy lint-lua lint-shell
lint: setup lint-format lint-tidy lint-lua lint-shell

lint-format:
	@clang-format --dry-run -Werror templates/*.[ch] templates/*.cu runtime/*.[ch] tests/*.[ch] \
	    tests/emulator/*.cc tests/emulator/*.h docs/*.c

lint-tidy:
	@folder=$$($(LUA) codegen/main.lua --from random --spec model_specs/smollm2-135m.lua) && \
	clang-tidy --quiet --config-file=.clang-tidy "$$folder/engine.c" "$$folder/pack.c" -- \
	    -std=c11

lint-lua:
	@luacheck --quiet codegen model_specs tests $$(grep -l '^#!/usr/bin/env lua' tests/*.t)

lint-shell:
	@shellcheck .ci/run codegen/*.sh tests/*.sh $$(grep -l '^#!/bin/sh' tests/*.t)

# ---- measurements --------------------------------------------------------------------------------

# LLAMA=1 builds llama.cpp once and measures it in turns with the engine; LLAMA_BIN names a folder
# with its programs where they are.
bench: demo-all demo-int4
	@$(if $(LLAMA),codegen/install.sh cmake g++ make && tests/build_llama.sh out/llama)
	@LLAMA_BIN=$(or $(LLAMA_BIN),$(if $(LLAMA),out/llama/bin)) \
	    $(LUA) tests/bench.lua $(DEMO_ALL) $(DEMO_INT4) $(GGUF)

clean:
	rm -rf out
