# temper's build. `make help` lists the targets; builds land in build/<kind>/.
# Sources are found by folder, so a new file needs no line here.

KIND    ?= cpu
CC      ?= gcc
BUILD   := build/$(KIND)
WARN    := -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes $(if $(CI),-Werror)
OPT     ?= -O2 -g
# -ffp-contract=off: a fused multiply-add happens where the source says fma, nowhere else.
CFLAGS  := -std=gnu17 $(OPT) $(WARN) -ffp-contract=off -fno-strict-aliasing -fvisibility=hidden -fPIC -pthread -MMD -MP
PACKAGES := yaml-0.1 jansson libpcre2-8 libutf8proc libcrypto zlib libzstd
PKG_CFLAGS := $(shell pkg-config --cflags $(PACKAGES) 2>/dev/null)
PKG_LIBS   := $(shell pkg-config --libs $(PACKAGES) 2>/dev/null)
CPPFLAGS := -Iinclude -Isrc -D_GNU_SOURCE $(PKG_CFLAGS)
LDLIBS  := $(PKG_LIBS) -lm -ldl -pthread

ifeq ($(KIND),asan)
CFLAGS += -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -DTM_SANITIZE
LDFLAGS += -fsanitize=address,undefined
endif
ifeq ($(KIND),tsan)
CFLAGS += -fsanitize=thread -DTM_SANITIZE
LDFLAGS += -fsanitize=thread
endif

# CPU kernels: every file of src/device/cpu is compiled once per instruction set, except cpu.c.
ARCH    := $(shell uname -m)
# Sixteen scalars a vector make huge functions; the passes left out take gcc minutes and gain nothing.
PLAIN      := -O2 $(if $(findstring clang,$(shell $(CC) --version)),,-fno-tree-dse -fno-tree-sra -fno-var-tracking)
ISA_scalar := -DTM_KERNEL_ISA=scalar -DTM_SIMD_SCALAR $(PLAIN)
ISA_f64    := -DTM_KERNEL_ISA=f64 -DTM_SIMD_F64 $(PLAIN)
ISA_avx2   := -DTM_KERNEL_ISA=avx2 -DTM_SIMD_AVX2 -mavx2 -mfma -mf16c
ISA_avx512 := -DTM_KERNEL_ISA=avx512 -DTM_SIMD_AVX512 -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512bf16 -mfma -mf16c -mprefer-vector-width=512
# Under a sanitizer: memory errors and races; undefined arithmetic is looked for above the kernels.
SANITIZED  := $(if $(filter asan tsan,$(KIND)),-O1 -g1 -fno-sanitize=undefined)
ISAS    := scalar f64 $(if $(filter x86_64,$(ARCH)),avx2 avx512)

KERNELS := $(filter-out src/device/cpu/cpu.c,$(wildcard src/device/cpu/*.c))
SOURCES := $(filter-out src/cli/%,$(filter-out $(KERNELS),$(wildcard src/*/*.c src/device/cpu/cpu.c)))
OBJECTS := $(SOURCES:%.c=$(BUILD)/%.o) \
           $(foreach isa,$(ISAS),$(patsubst src/device/cpu/%.c,$(BUILD)/kernels/$(isa)/%.o,$(KERNELS)))
CLI     := $(patsubst %.c,$(BUILD)/%.o,$(wildcard src/cli/*.c))
LIB     := $(BUILD)/libtemper.a
TESTED  := unit fault $(if $(filter asan tsan,$(KIND)),,grad golden resume)
TESTS   := $(patsubst tests/%.c,$(BUILD)/tests/%,$(wildcard $(TESTED:%=tests/%/test_*.c)))
BENCHES := $(patsubst bench/%.c,$(BUILD)/bench/%,$(wildcard bench/*.c))

.PHONY: dist-cuda cuda-tests test-cuda lab all help test check asan tsan bench fuzz dist install demo docs clean layers cuda emulated unit what-fits
.SECONDARY:
all: $(BUILD)/temper ## the program and the library

help: ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

$(BUILD)/temper: $(CLI) $(LIB)
	@echo "  ld $@"; $(CC) $(LDFLAGS) -o $@ $(CLI) $(LIB) $(LDLIBS)

$(LIB): $(OBJECTS)
	@rm -f $@
	@$(AR) rcs $@ $^

$(BUILD)/%.o: %.c
	@mkdir -p $(@D)
	@echo "  cc $<"; $(CC) $(CPPFLAGS) $(CFLAGS) -c -o $@ $<

define KERNEL_RULE
$(BUILD)/kernels/$(1)/%.o: src/device/cpu/%.c
	@mkdir -p $$(@D)
	@echo "  cc $$< ($(1))"; $(CC) $(CPPFLAGS) $(CFLAGS) -O3 $(ISA_$(1)) $(SANITIZED) -c -o $$@ $$<
endef
$(foreach isa,$(ISAS),$(eval $(call KERNEL_RULE,$(isa))))

# The GPU's part, a library that the program loads when it is asked to: CUDA 13, machine code for the architectures
# named (a GPU of another one is refused, so that bits never depend on the driver's compiler).
# -fmad=false: a fused multiply-add happens where the source says fma, nowhere else.
NVCC      ?= nvcc
CUDA_ARCH ?= 90a
CUDA_FLAGS := -std=c++17 -O3 --extended-lambda -fmad=false $(foreach a,$(CUDA_ARCH),-gencode=arch=compute_$(a),code=sm_$(a)) \
              -Xcompiler -fPIC,-fvisibility=hidden,-Wall -Iinclude -Isrc -D_GNU_SOURCE
# One folder a set of architectures.
CUDA_BUILD ?= build/cuda
CUDA_OBJECTS := $(patsubst %.cu,$(CUDA_BUILD)/%.o,$(wildcard src/device/cuda/*.cu src/device/cuda/half/*.cu))
CUDA_SHARED  := $(patsubst %,build/cpu/src/%.o,base/status base/buf base/dtype base/env device/compose device/device)

cuda: $(CUDA_BUILD)/libtemper-cuda.so ## libtemper-cuda.so for GPUs (CUDA_ARCH="90a ...": which)

$(CUDA_BUILD)/libtemper-cuda.so: $(CUDA_OBJECTS) $(CUDA_SHARED)
	@echo "  nvcc $@"; $(NVCC) $(CUDA_FLAGS) -shared -cudart static -Xlinker -Bsymbolic,--exclude-libs=ALL -o $@ $^

$(CUDA_BUILD)/%.o: %.cu
	@mkdir -p $(@D)
	@echo "  nvcc $<"; $(NVCC) $(CUDA_FLAGS) -MMD -MP -c -o $@ $<

# Tests that need a GPU: every program of tests/cuda, then the golden cases and whole runs on it.
CUDA_TESTS := $(patsubst %.cu,$(CUDA_BUILD)/%,$(wildcard tests/cuda/test_*.cu))
cuda-tests: $(CUDA_TESTS:=.o) ## compiles the tests that need a GPU
test-cuda: cuda $(CUDA_TESTS) build/cpu/tests/golden/test_golden build/cpu/tests/unit/test_cuda_train ## tests on a GPU
	@tests/cuda/run $(CUDA_TESTS)

$(CUDA_BUILD)/tests/%: $(CUDA_BUILD)/tests/%.o $(CUDA_OBJECTS) $(CUDA_SHARED)
	@echo "  nvcc $@"; $(NVCC) $(CUDA_FLAGS) -o $@ $^

# The laboratory of GPU kernels: variants, their checks and rates; for a Hopper GPU.
lab: build/lab/attention build/lab/libgemm.so ## the laboratory of GPU kernels (build/lab/attention, gemm.py)
build/lab/libgemm.so: bench/lab/gemm.cu $(wildcard src/device/cuda/half/*.cu*)
	@mkdir -p $(@D)
	@echo "  nvcc $<"; $(NVCC) $(CUDA_FLAGS) -shared -o $@ $<
build/lab/%: bench/lab/%.cu $(wildcard bench/lab/*.cuh src/device/cuda/half/*.cuh)
	@mkdir -p $(@D)
	@echo "  nvcc $<"; $(NVCC) -std=c++17 -O3 -Isrc -gencode=arch=compute_90a,code=sm_90a -o $@ $<

# The same sources on the processor, for tests where there is no GPU: tests/emulated. One library has the plain kernels
# alone, the other the fast ones beside them.
ifeq ($(origin CXX),default)
CXX := $(if $(findstring clang,$(CC)),$(subst clang,clang++,$(CC)),g++)
endif
EMULATED      := $(BUILD)/emulated/libtemper-cuda.so
EMULATED_FAST := $(BUILD)/emulated/libtemper-cuda-fast.so
EMULATED_SIMT := $(patsubst %.cpp,$(BUILD)/%.o,$(wildcard tests/emulated/*.cpp)) $(CUDA_SHARED:build/cpu/%=$(BUILD)/%)
EMULATED_PLAIN_OBJECTS := $(patsubst %.cu,$(BUILD)/emulated/%.o,$(wildcard src/device/cuda/*.cu) src/device/cuda/half/serve.cu)
EMULATED_OBJECTS := $(patsubst %.cu,$(BUILD)/emulated/%.o,$(wildcard src/device/cuda/*.cu src/device/cuda/half/*.cu))
# Fibers are what ThreadSanitizer does not know; all of UBSan doubles the time that kernels take to compile.
comma := ,
EMULATED_FLAGS := -std=c++17 -Itests/emulated -Iinclude -Isrc -D_GNU_SOURCE -fPIC -fvisibility=hidden -ffp-contract=off -fno-strict-aliasing -Wall -Wno-unknown-pragmas -Wno-unused-function -Wno-psabi -Wno-sign-compare -Wno-maybe-uninitialized \
                  $(if $(filter asan,$(KIND)),-fsanitize=address$(comma)alignment -fno-sanitize-recover=alignment -fno-omit-frame-pointer -DTM_SANITIZE) $(if $(filter x86_64,$(ARCH)),-mfma -mf16c)

emulated: $(EMULATED) $(EMULATED_FAST)

$(EMULATED): $(EMULATED_PLAIN_OBJECTS) $(EMULATED_SIMT)
$(EMULATED_FAST): $(EMULATED_OBJECTS) $(EMULATED_SIMT)
$(EMULATED) $(EMULATED_FAST):
	@echo "  ld $@"; $(CXX) $(LDFLAGS) -shared -Wl,-Bsymbolic -o $@ $^ -ldl -pthread

$(BUILD)/emulated/%.o: %.cu
	@mkdir -p $(@D)
	@echo "  c++ $< (emulated)"; $(CXX) -x c++ $(EMULATED_FLAGS) $(if $(filter asan,$(KIND)),-O1,-O2) -g1 -MMD -MP -c -o $@ $<

# tests/cuda on the processor, with sizes for it.
EMULATED_TESTS := $(patsubst %.cu,$(BUILD)/emulated/%,$(wildcard tests/cuda/test_*.cu))
$(EMULATED_TESTS): $(BUILD)/emulated/%: $(BUILD)/emulated/%.o $(EMULATED_OBJECTS) $(EMULATED_SIMT)
	@echo "  ld $@"; $(CXX) $(LDFLAGS) -o $@ $^ -ldl -pthread

$(BUILD)/%.o: %.cpp
	@mkdir -p $(@D)
	@echo "  c++ $<"; $(CXX) $(EMULATED_FLAGS) -O3 -g1 -MMD -MP -c -o $@ $<

# Fault tests replace malloc and the file calls by ones that fail on command.
WRAP := -Wl,--wrap=malloc,--wrap=calloc,--wrap=realloc,--wrap=read,--wrap=write,--wrap=fsync,--wrap=rename,--wrap=mmap \
        -Wl,--wrap=fwrite,--wrap=fflush,--wrap=pthread_create
$(BUILD)/tests/fault/%: EXTRA_LD := $(WRAP)
$(BUILD)/tests/unit/test_cuda_%.o: CPPFLAGS += -DEMULATED='"$(EMULATED)"' -DEMULATED_FAST='"$(EMULATED_FAST)"' -DEMULATED_PROGRAMS='"$(BUILD)/emulated/tests/cuda"'
$(patsubst %,$(BUILD)/tests/unit/test_cuda_%,generate jobs ops rows train workshop): | $(if $(shell command -v $(CXX)),$(EMULATED) $(EMULATED_FAST))
$(BUILD)/tests/unit/test_cuda_fast: | $(if $(shell command -v $(CXX)),$(EMULATED_TESTS))
$(BUILD)/tests/%: $(BUILD)/tests/%.o $(LIB)
	@mkdir -p $(@D)
	@echo "  ld $@"; $(CC) $(LDFLAGS) $(EXTRA_LD) -o $@ $< $(LIB) $(LDLIBS) -lcmocka

$(BUILD)/tools/%: $(BUILD)/tools/%.o $(LIB)
	@echo "  ld $@"; $(CC) $(LDFLAGS) -o $@ $< $(LIB) $(LDLIBS)

$(BUILD)/bench/%: $(BUILD)/bench/%.o $(LIB)
	@mkdir -p $(@D)
	@echo "  ld $@"; $(CC) $(LDFLAGS) -o $@ $< $(LIB) $(LDLIBS)

# For a host with a driver and nothing else of ours.
$(BUILD)/bench/%-static: $(BUILD)/bench/%.o $(LIB)
	@echo "  ld $@"; $(CC) $(LDFLAGS) -s -o $@ $< $(LIB) -Wl,-Bstatic $(PKG_LIBS) -Wl,-Bdynamic -lm -ldl -pthread

unit: $(TESTS) $(BUILD)/temper $(BUILD)/tools/what_fits
	@tests/run $(BUILD)

test: layers unit ## every test that needs no GPU, no network and no Python

asan: ## unit and fault tests under AddressSanitizer and UBSan
	$(MAKE) KIND=asan OPT="-O1 -g" unit

tsan: ## unit tests under ThreadSanitizer
	$(MAKE) KIND=tsan OPT="-O1 -g" unit

layers: ## no include climbs the table of ARCHITECTURE.md
	@tools/check_layers

demo: $(BUILD)/temper ## fine-tunes the shipped model and shows what it learned and kept
	$(BUILD)/temper demo

bench: $(BENCHES) ## rates of this machine, beside the peers'

docs: $(BUILD)/tools/make_recipe_doc ## docs/recipe.md from the table of options
	$< > docs/recipe.md

what-fits: $(BUILD)/tools/what_fits ## docs/what-fits.md: models, cards, memory and hours, by the planner
	TEMPER_CALIBRATION=none $< > docs/what-fits.md

# What a release and an installation hold beside the program.
VERSION := $(shell sed -n 's/^\#define TM_VERSION "\(.*\)"/\1/p' include/temper.h)
SHARED  := $(wildcard models data recipes)
PREFIX  ?= /usr/local
DIST    := build/dist/temper-$(VERSION)

install: $(BUILD)/temper ## into PREFIX (/usr/local), below DESTDIR: program, library, header, temper.pc
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/lib/pkgconfig $(DESTDIR)$(PREFIX)/include $(DESTDIR)$(PREFIX)/share/temper
	install -m 755 $(BUILD)/temper $(DESTDIR)$(PREFIX)/bin/temper
	install -m 644 $(LIB) $(DESTDIR)$(PREFIX)/lib/libtemper.a
	install -m 644 include/temper.h $(DESTDIR)$(PREFIX)/include/temper.h
	printf '%s\n' 'prefix=$(PREFIX)' 'Name: temper' 'Description: fine-tuning of language models, reproducible to the bit' \
	  'Version: $(VERSION)' 'Requires: $(PACKAGES)' 'Libs: -L$${prefix}/lib -ltemper -lm -ldl -pthread' 'Cflags: -I$${prefix}/include' \
	  > $(DESTDIR)$(PREFIX)/lib/pkgconfig/temper.pc
	cp -r $(SHARED) $(DESTDIR)$(PREFIX)/share/temper/

# The third-party libraries go in as archives: the program then asks a system for its C library alone.
$(BUILD)/temper-static: $(CLI) $(LIB)
	$(CC) $(LDFLAGS) -s -o $@ $(CLI) $(LIB) -Wl,-Bstatic $(PKG_LIBS) -Wl,-Bdynamic -lm -ldl -pthread
	@! ldd $@ | grep -Ev 'linux-vdso|ld-linux|libc\.so|libm\.so|libdl\.so|libpthread\.so'

# With nvcc here the GPU's library goes along, for every architecture that is compiled for.
DIST_CUDA := $(if $(shell command -v $(NVCC)),dist-cuda)
dist-cuda:
	$(MAKE) cuda CUDA_BUILD=build/cuda-dist CUDA_ARCH="80 86 89 90a 120"

dist: $(BUILD)/temper-static $(DIST_CUDA) ## build/dist/temper-VERSION.tar.gz: one program that needs only libc, with model and data
	rm -rf $(DIST)
	mkdir -p $(DIST)/licenses
	cp $(BUILD)/temper-static $(DIST)/temper
	$(if $(DIST_CUDA),cp build/cuda-dist/libtemper-cuda.so $(DIST)/)
	cp -r $(SHARED) README.md README.ru.md LICENSE docs $(DIST)/
	for p in libyaml-dev libjansson-dev libpcre2-dev libutf8proc-dev libssl-dev zlib1g-dev libzstd-dev; do \
	  cp /usr/share/doc/$$p/copyright $(DIST)/licenses/$$p.txt || exit 1; done
	tar -C build/dist --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner -cf - temper-$(VERSION) | gzip -9n > $(DIST).tar.gz
	rm -rf $(DIST)
	@ls -l $(DIST).tar.gz

clean: ## removes build/
	rm -rf build

include tests/fuzz/fuzz.mk

-include $(shell find $(BUILD) $(CUDA_BUILD) -name '*.d' 2>/dev/null)
