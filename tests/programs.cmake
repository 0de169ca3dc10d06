# The C programs and libraries of the tests, of the library's own sources with its own flags. Nothing is built unless asked
# for: tests/native_build.py does, in a folder for each kind of build, with PYFLASH_TESTS on.

# pf_test_part(NAME REGEX): objects of those sources of the library that match.
function(pf_test_part name pattern)
  set(sources ${pf_sources})
  list(FILTER sources INCLUDE REGEX ${pattern})
  add_library(${name} OBJECT EXCLUDE_FROM_ALL ${sources})
  set_target_properties(${name} PROPERTIES POSITION_INDEPENDENT_CODE ON)
  target_compile_options(${name} PUBLIC $<TARGET_PROPERTY:pyflash_objects,COMPILE_OPTIONS>)
  target_compile_definitions(${name} PUBLIC $<TARGET_PROPERTY:pyflash_objects,COMPILE_DEFINITIONS>)
  target_include_directories(${name} PUBLIC $<TARGET_PROPERTY:pyflash_objects,INCLUDE_DIRECTORIES>)
  target_link_options(${name} INTERFACE $<TARGET_PROPERTY:pyflash_objects,INTERFACE_LINK_OPTIONS>)
  target_link_libraries(${name} PUBLIC Threads::Threads ${CMAKE_DL_LIBS} m)
endfunction()

# pf_test_program(NAME PARTS part... SOURCES file...), and the same for a library that ctypes or cffi loads.
function(pf_test_program name)
  cmake_parse_arguments(PARSE_ARGV 1 own "" "" "PARTS;SOURCES")
  add_executable(${name} EXCLUDE_FROM_ALL ${own_SOURCES})
  target_link_libraries(${name} PRIVATE ${own_PARTS})
endfunction()
function(pf_test_library name)
  cmake_parse_arguments(PARSE_ARGV 1 own "" "" "PARTS;SOURCES")
  add_library(${name} MODULE EXCLUDE_FROM_ALL ${own_SOURCES} tests/empty.c)
  set_target_properties(${name} PROPERTIES PREFIX "" SUFFIX ".so")
  target_link_libraries(${name} PRIVATE ${own_PARTS})
endfunction()

pf_test_part(base_part "^csrc/(base|format)/")
pf_test_part(kernels_part "^csrc/backend/cpu/")
pf_test_part(text_part "^csrc/text/|^csrc/runtime/(logits|sampler)[.]c$")
pf_test_part(library_part "^csrc/")
pf_test_part(choices_part "^csrc/offload/(hot|upload)_choice[.]c$")
pf_test_part(quantise_part "^csrc/quantize/(grid|grid_formats|k|length|rows)[.]c$")

set(pf_gate tests/backend/gate.c tests/backend/gate_linear.c tests/backend/gate_model.c)
pf_test_program(gate PARTS base_part kernels_part
  SOURCES ${pf_gate} tests/backend/gate_fp4.c tests/backend/gate_kernels.c tests/backend/gate_tiles.c)
pf_test_library(glue PARTS base_part kernels_part SOURCES tests/backend/glue.c)
pf_test_library(text PARTS base_part text_part)
pf_test_library(choices PARTS choices_part SOURCES tests/model/choice_size.c)
pf_test_library(quantise_base PARTS base_part quantise_part SOURCES tests/quantize/base_loops.c)
pf_test_program(test_format PARTS base_part SOURCES tests/format/test_format.c tests/format/test_gguf.c)
file(GLOB_RECURSE pf_gguf_fuzz CONFIGURE_DEPENDS csrc/*/gguf_fuzz.c)
pf_test_program(gguf_driver PARTS base_part SOURCES tests/format/gguf_driver.c ${pf_gguf_fuzz})

pf_test_program(steps PARTS library_part SOURCES tests/model/steps.c)
target_compile_definitions(steps PRIVATE STEPS_OUT_OF_MEMORY) # refuses scratch on demand
target_link_options(steps PRIVATE -Wl,--wrap=pf_arena_alloc)

# --- the CUDA plugin's kernels as C++, over an emulation of the device; linked by tests/backend/cuda_build.py ---

include(CheckLanguage)
check_language(CXX)
if(CMAKE_CXX_COMPILER AND NOT PYFLASH_CUDA)
  enable_language(CXX)
  set_source_files_properties(${pf_cuda_sources} PROPERTIES LANGUAGE CXX COMPILE_OPTIONS "-xc++")
  function(pf_emulated_part name)
    add_library(${name} OBJECT EXCLUDE_FROM_ALL ${ARGN})
    target_include_directories(${name} PRIVATE csrc csrc/include tests/backend)
    target_compile_definitions(${name} PRIVATE PF_CUDA_EMULATED PF_STATIC)
    target_compile_features(${name} PRIVATE cxx_std_17)
    target_compile_options(${name} PRIVATE -Wall -Wextra -Werror -ffp-contract=off -fno-strict-aliasing)
    if(pf_processor MATCHES "^(x86_64|AMD64|amd64)$")
      target_compile_options(${name} PRIVATE -march=native) # else every fmaf is a call
    endif()
    set_target_properties(${name} PROPERTIES POSITION_INDEPENDENT_CODE ON CXX_EXTENSIONS OFF)
  endfunction()
  set(pf_aligned -fsanitize=alignment -fsanitize-undefined-trap-on-error)
  pf_emulated_part(cuda_emulated ${pf_cuda_sources}
    tests/backend/cuda_emulation.cpp tests/backend/cuda_emulation_streams.cpp)
  target_compile_options(cuda_emulated PRIVATE ${pf_aligned})
  # Watched: cuda_watch.cpp sees every access to shared and to the device's memory.
  pf_emulated_part(cuda_watched ${pf_cuda_sources})
  target_compile_options(cuda_watched PRIVATE -fsanitize=thread)
  pf_emulated_part(cuda_watch tests/backend/cuda_watch.cpp tests/backend/cuda_emulation_streams.cpp)

  foreach(kind emulated watched)
    pf_test_program(gate_${kind} PARTS base_part kernels_part cuda_${kind} $<$<STREQUAL:${kind},watched>:cuda_watch>
      SOURCES ${pf_gate} tests/backend/gate_cuda.c)
    target_compile_definitions(gate_${kind} PRIVATE PF_GATE_TOOLS_ONLY PF_CUDA_EMULATED)
    set_target_properties(gate_${kind} PROPERTIES LINKER_LANGUAGE CXX)
  endforeach()
endif()
