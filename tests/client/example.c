/* The program of client/README.md: puts one document, prefetches, reads what came. Run by
 * example_test.cc on a real skvd. Exit code 0: all went well and every block read was the one put.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client/skv.h"

/* [snippet:c] */
static void check(int code) {
  if (code < 0) {
    fprintf(stderr, "%s: %s\n", skv_error_name(code), skv_last_error());
    exit(1);
  }
}

enum { TOKENS = 200, HEADS = 2, DIM = 32, BLOCK = 8 };

int main(void) {
  skv_session session; /* on $SKV_SOCKET, else /run/skvd/skvd.sock */
  check(skv_session_open(NULL, &session));

  skv_layer layer = {sizeof layer, SKV_LAYER_FULL, HEADS, /*queries_per_kv_head=*/2, DIM, DIM};
  layer.softmax_scale = 0.177F;
  layer.rotary_index = SKV_NO_ROTARY;
  skv_model_descriptor descriptor = {sizeof descriptor, SKV_DTYPE_FP32, BLOCK, SKV_K_POST_ROPE};
  descriptor.tp_size = 1;
  descriptor.weights_id = "my weights";
  descriptor.layers = &layer;
  descriptor.layer_count = 1;
  skv_model model;
  check(skv_model_open(session, &descriptor, &model));

  /* Tokens, and where sentences end; the library cuts at block edges near these. */
  skv_context context;
  check(skv_context_open(model, NULL, &context));
  uint32_t tokens[TOKENS], ends[] = {40, 80, 120, 160, 200};
  for (uint32_t i = 0; i < TOKENS; ++i) tokens[i] = i;
  skv_append_options append = {sizeof append, SKV_AT_END, tokens, TOKENS, 5, ends, TOKENS};
  skv_append_result closed = {sizeof closed};
  check(skv_context_append(context, &append, &closed));

  /* K [head][token][dim], then V, in memory that the daemon copies from. */
  const uint64_t half = sizeof(float) * HEADS * TOKENS * DIM;
  skv_memory memory;
  check(skv_memory_create(session, 2 * half, &memory));
  skv_memory_info kv = {sizeof kv};
  check(skv_memory_get_info(memory, &kv));
  for (uint64_t i = 0; i < 2 * half / sizeof(float); ++i) ((float*)kv.pointer)[i] = (float)i;

  check(skv_put_reserve(context, 0, closed.closed_count, NULL));
  skv_strided_kv source = {sizeof source, /*first_token=*/0, memory, /*k_offset=*/0, half};
  source.head_stride = sizeof(float) * TOKENS * DIM;
  source.token_stride = sizeof(float) * DIM;
  skv_put_write_options write = {sizeof write, 0, closed.closed_count, /*first_layer=*/0, 1};
  write.source = &source;
  check(skv_put_write(context, &write, NULL));
  check(skv_put_commit(context, 0, closed.closed_count, /*derive_vectors=*/1, NULL));

  /* What matters to this query: the first block and the best 4 of the others, per kv head. */
  skv_window_options options = {sizeof options, /*budget_blocks=*/4, /*sink_blocks=*/1};
  skv_window window;
  check(skv_window_open(context, &options, &window));
  float query[2 * HEADS * DIM];
  for (uint32_t i = 0; i < 2 * HEADS * DIM; ++i) query[i] = 0.01F * (float)(i % 7);
  skv_prefetch_result done = {sizeof done};
  check(skv_prefetch(window, query, sizeof query, NULL, &done));

  skv_table table = {sizeof table};
  check(skv_window_table(window, /*layer=*/0, &table));
  uint32_t wrong = 0;
  for (uint32_t i = table.indptr[0]; i < table.indptr[1]; ++i) { /* kv head 0 */
    const void* block;
    check(skv_window_slot(window, 0, table.slot[i], &block));
    /* K of BLOCK tokens from position table.block[i] * BLOCK on, then V: attend them here. */
    const float* put = (const float*)kv.pointer + (size_t)table.block[i] * BLOCK * DIM;
    wrong += memcmp(block, put, sizeof(float) * BLOCK * DIM) != 0;
  }
  check(skv_readers_done(window, done.version));
  printf("read %u blocks, %u wrong; tokens from %u on are the engine's own\n", done.read_blocks,
         wrong, done.covered_to);
  check(skv_session_close(session)); /* and all that is open under it */
  return wrong == 0 && done.read_blocks == 10 ? 0 : 1;
}
/* [/snippet:c] */
