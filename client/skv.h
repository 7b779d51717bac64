#ifndef SKV_CLIENT_SKV_H_
#define SKV_CLIENT_SKV_H_

/* libskv: the library an inference engine links to keep its KV in skvd, the sentence-KV daemon.
 *
 * Start   client/README.md has a whole program. Words (sentence, block, window, slot, lease...) are
 *         those of docs/architecture.md.
 * Handles are numbers in pointer type: never dereferenced by anyone, checked at every call, never
 *         reused. A closed, forged or wrong-kind handle gives SKV_E_UNKNOWN_HANDLE. NULL is none.
 * Errors  functions return SKV_OK (0) or a negative code; skv_last_error() has the text. Outputs
 * are written on success only, unless said otherwise. Nothing is thrown and nothing aborts on
 *         account of an argument. Every function may return SKV_E_INVALID_ARGUMENT,
 *         SKV_E_UNKNOWN_HANDLE, SKV_E_DENIED (in a forked child, see below) and, where it talks to
 *         the daemon, SKV_E_DISCONNECTED, SKV_E_TIMEOUT, SKV_E_PROTOCOL, SKV_E_IO; "Errors" lists
 *         what else.
 * Structs begin with `size`, set by the caller to sizeof of its struct. A library newer than its
 *         caller takes missing fields as zero; an older one refuses fields it does not know unless
 *         they are zero. Of an output struct, `size` bytes at most are written. Reserved: zero.
 * Threads every function may be called from any thread at any time, also with one handle from
 *         several; calls on one context are served one after another. The library starts no thread
 *         and installs no signal handler. Each thread that prefetches, puts or loads has one
 *         channel per session, taken on its first call and given back when the thread exits;
 *         64 per session. Beyond, a prefetch is SKV_E_TOO_LARGE, the rest goes by the socket.
 * Blocks  a call that talks to the daemon blocks until the answer is there, at most its timeout
 *         (skv_session_options::call_timeout_ms unless the function takes one). The others do not
 *         block.
 * Restart when the daemon goes away, calls that wait for it end with SKV_E_DISCONNECTED: a miss,
 *         to be treated as one. The next call connects again (jittered back-off, within
 *         connect_timeout_ms; when that was in vain, later calls try once and fail at once), opens
 *         models, contexts and memories again as they are used, and goes on. Windows and leases
 *         die with the connection (SKV_E_STALE): close them, open new ones. What they have mapped
 *         stays readable until they are closed.
 * Fork    a child has no session: its calls give SKV_E_DENIED until it opens one of its own, and
 *         inherited handles stay refused for good.
 * Units   bytes, tokens, blocks (block_tokens tokens of one kv head of one layer), milliseconds as
 *         named. Positions are tokens from the start of the context. Ranges are first + count. */

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(SKV_BUILDING_LIBRARY)
#define SKV_API __attribute__((visibility("default")))
#else
#define SKV_API
#endif

/* C's names, not those of the C++ sources. NOLINTBEGIN(readability-identifier-naming) */

/* ---- errors ---------------------------------------------------------------------------------- */

enum {
  SKV_OK = 0,
  SKV_E_INVALID_ARGUMENT = -1, /* a field is out of its range; the text names field and limit */
  SKV_E_UNSUPPORTED = -2,      /* understood, not served by this version; named */
  SKV_E_UNKNOWN_HANDLE = -3,   /* closed, never opened, of another kind or another session */
  SKV_E_PROTOCOL = -4,         /* what answered does not speak this protocol; connection closed */
  SKV_E_TOO_LARGE = -5,        /* above a limit; the text has both numbers */
  SKV_E_NO_SPACE = -6,         /* a tier or quota is full */
  SKV_E_IO = -7,               /* the system refused; the text has the call and errno */
  SKV_E_CORRUPT = -8,          /* a checksum does not hold: a miss */
  SKV_E_BUSY = -9,             /* nothing reusable or a queue is full: try again */
  SKV_E_TIMEOUT = -10,         /* the deadline passed; the operation may still take effect */
  SKV_E_DISCONNECTED = -11,    /* the daemon went away: a miss; the next call connects again */
  SKV_E_STALE = -12,           /* of an earlier connection, daemon or device: open it again */
  SKV_E_CANCELLED = -13,       /* the session was closed under the call */
  SKV_E_DENIED = -14,          /* not this process's to do */
  SKV_E_NOT_FOUND = -15,       /* a miss */
  SKV_E_INTERNAL = -16
};

/* What went wrong in the last call of this thread that failed; "" before any did. Valid until this
 * thread's next failing call. Never NULL. */
SKV_API const char* skv_last_error(void);
/* "SKV_E_BUSY" and so on; "SKV_E_?" for a number that is none. Static storage. */
SKV_API const char* skv_error_name(int code);
/* Version of the library, "0.1.0". Static storage. */
SKV_API const char* skv_version(void);

typedef struct skv_session_tag* skv_session;
typedef struct skv_model_tag* skv_model;
typedef struct skv_context_tag* skv_context;
typedef struct skv_window_tag* skv_window;
typedef struct skv_memory_tag* skv_memory;
typedef struct skv_lease_tag* skv_lease;
typedef struct skv_hold_tag* skv_hold;
typedef struct skv_keys_tag* skv_keys;
typedef uint64_t skv_ticket; /* of one asynchronous operation of a session; 0 is none */

/* ---- session --------------------------------------------------------------------------------- */

#define SKV_SPIN_NEVER 0xFFFFFFFFU

typedef struct skv_session_options {
  uint32_t size;
  uint32_t connect_timeout_ms; /* skv_session_open, and connecting again inside calls; 0: 2000 */
  uint32_t call_timeout_ms;    /* 0: what the daemon proposes at hello (30000 if nothing) */
  uint32_t spin_us; /* most that a wait on a channel looks before it sleeps. 0: the library's choice
                       (20 where there are 6 cores or more, else none); SKV_SPIN_NEVER */
  const char* socket_path; /* NULL: $SKV_SOCKET, else /run/skvd/skvd.sock. Copied */
  const char* client_name; /* NULL: the program's name. For logs; at most 64 bytes. Copied */
} skv_session_options;

/* Connects. options may be NULL. Blocks up to connect_timeout_ms, through absence of the daemon
 * too. Owns: the session and all opened under it, until skv_session_close. Errors:
 * SKV_E_DISCONNECTED (nothing listens), SKV_E_UNSUPPORTED (no common protocol version),
 * SKV_E_DENIED, SKV_E_TOO_LARGE (quota of sessions). */
SKV_API int skv_session_open(const skv_session_options* options, skv_session* session);

/* Closes the session and every handle under it; calls blocked in other threads end with
 * SKV_E_CANCELLED. Mappings go, except those that a skv_hold keeps. Does not wait for the daemon,
 * which gives back all that the session held. */
SKV_API int skv_session_close(skv_session session);

typedef struct skv_session_info {
  uint32_t size;
  uint32_t session_id;  /* at the daemon, as skvctl shows it; new at each connection */
  uint32_t connections; /* 1, + 1 for each time the library had to connect again */
  uint32_t connected;   /* 1: as far as known without asking */
  const void* host;     /* read-only: bodies of this space in host memory (leases, windows) */
  uint64_t host_bytes;
  uint8_t instance[16]; /* of the daemon process */
  uint8_t boot_id[16];
  char device_kind[16]; /* "emulated", "cuda", "none" */
  char daemon_version[32];
} skv_session_info;

/* Does not block. Pointers are valid until the session is closed or has connected again, or as long
 * as a hold lives. */
SKV_API int skv_session_get_info(skv_session session, skv_session_info* info);

/* Connects again now if the connection is lost, waiting up to timeout_ms (0: one try). No other
 * call is needed for this; it is for engines that want to choose the moment. */
SKV_API int skv_session_reconnect(skv_session session, uint32_t timeout_ms);

/* ---- holds ----------------------------------------------------------------------------------- */

/* A hold keeps what an object has mapped readable after the object is closed, so that views handed
 * to a garbage collected language never dangle. It keeps memory, not meaning: bytes of a closed
 * window, a released lease or a closed session may change. */
SKV_API int skv_session_hold(skv_session session, skv_hold* hold); /* host memory */
SKV_API int skv_window_hold(skv_window window, skv_hold* hold);    /* tables and slots */
SKV_API int skv_memory_hold(skv_memory memory, skv_hold* hold);
SKV_API int skv_lease_hold(skv_lease lease, skv_hold* hold); /* the host memory of its extents */
/* Works after skv_session_close too. */
SKV_API int skv_hold_release(skv_hold hold);

/* ---- model ----------------------------------------------------------------------------------- */

enum {
  SKV_DTYPE_FP32 = 0,
  SKV_DTYPE_FP16 = 1,
  SKV_DTYPE_BF16 = 2,
  SKV_DTYPE_FP8_E4M3 = 3,
  SKV_DTYPE_FP8_E5M2 = 4
};
enum {
  SKV_LAYER_FULL = 0,
  SKV_LAYER_SLIDING_WINDOW = 1,
  SKV_LAYER_LINEAR = 2,
  SKV_LAYER_SHARES_KV = 3,
  SKV_LAYER_SHARES_INDEX = 4
};
enum { SKV_K_POST_ROPE = 0, SKV_K_PRE_ROPE = 1, SKV_K_LATENT = 2 };
enum { SKV_ROTARY_NONE = 0, SKV_ROTARY_HALF_SPLIT = 1, SKV_ROTARY_INTERLEAVED = 2 };
#define SKV_NO_ROTARY 0xFFFFu

typedef struct skv_rotary_table {
  uint32_t size;
  uint32_t dims;   /* rotated dimensions, even */
  uint32_t offset; /* of the first rotated dimension */
  uint32_t pairing;
  float attention_factor;
  uint32_t frequency_count; /* dims / 2 */
  const float* frequencies; /* as applied, after any scaling */
} skv_rotary_table;

typedef struct skv_layer {
  uint32_t size;
  uint32_t layer_class;
  uint32_t kv_heads; /* of this rank */
  uint32_t queries_per_kv_head;
  uint32_t k_dim;
  uint32_t v_dim;
  uint32_t shared_layer;   /* SKV_LAYER_SHARES_*: whose */
  uint32_t sliding_window; /* tokens */
  float softmax_scale;
  float logit_cap;       /* 0: none */
  uint32_t rotary_index; /* into rotary_tables, or SKV_NO_ROTARY */
} skv_layer;

/* All that an engine declares about its KV. The fingerprint covers what determines the bytes of
 * bodies: weights_id, dtype, block_tokens, heads, dims, rotary facts, k_state. Engines whose
 * descriptors agree in these share KV; weights_id must differ whenever the bytes would. */
typedef struct skv_model_descriptor {
  uint32_t size;
  uint32_t dtype;
  uint32_t block_tokens; /* 4, 8 or 16 */
  uint32_t k_state;
  uint32_t tp_rank;
  uint32_t tp_size;       /* >= 1 */
  uint32_t first_kv_head; /* of the whole model */
  uint32_t v_is_view_of_k;
  const char* weights_id; /* 1..256 bytes */
  const skv_rotary_table* rotary_tables;
  const skv_layer* layers;
  uint32_t rotary_table_count;
  uint32_t layer_count;
} skv_model_descriptor;

typedef struct skv_model_info {
  uint32_t size;
  uint32_t layer_count;
  uint32_t chunk_count; /* layer groups of a body */
  uint32_t block_tokens;
  uint32_t element_bytes;
  uint32_t reserved;
  uint8_t fingerprint[32];
} skv_model_info;

/* Declares a model; all of the descriptor is copied. Errors: SKV_E_UNSUPPORTED, which names what
 * this version does not serve. A model stays open while a context of it is. */
SKV_API int skv_model_open(skv_session session,
                           const skv_model_descriptor* descriptor,
                           skv_model* model);
SKV_API int skv_model_close(skv_model model);
SKV_API int skv_model_get_info(skv_model model, skv_model_info* info);

/* Bytes that skv_prefetch expects for layers [first_layer, first_layer + layer_count), and the most
 * of one (layer, kv head, block): block_tokens * (k_dim + v_dim) * element. */
SKV_API int skv_model_query_bytes(skv_model model,
                                  uint32_t first_layer,
                                  uint32_t layer_count,
                                  uint64_t* bytes);
SKV_API int skv_model_block_bytes(skv_model model, uint32_t layer, uint64_t* bytes);

/* ---- context --------------------------------------------------------------------------------- */

/* How the sentences of a context are ranked: what is kept for them (docs/protocol.md, semantic
 * vectors). From 2 on: one entry per run of run_tokens tokens, all read at every step. */
enum {
  SKV_INDEX_MEAN_SPREAD_RUNS = 0, /* the default: mean, spread, int4 runs; coarse, then fine */
  SKV_INDEX_MEAN = 1,             /* of the sentence */
  SKV_INDEX_FP16 = 2,             /* the run's mean */
  SKV_INDEX_BF16 = 3,
  SKV_INDEX_INT8 = 4,
  SKV_INDEX_INT4 = 5,
  SKV_INDEX_MIN_MAX = 6, /* upper bounds of the run's logits */
  SKV_INDEX_BOX = 7,
  SKV_INDEX_BALL = 8,
  SKV_INDEX_KEYS = 9 /* the key nearest to the run's mean */
};

typedef struct skv_context_options {
  uint32_t size;
  uint32_t index_kind;
  uint32_t run_tokens; /* 0: 2 */
} skv_context_options;

/* A private path of tokens that grows at its end. options may be NULL. Closing gives back windows
 * opened on it (their handles become SKV_E_STALE) and puts not committed; what is stored stays. */
SKV_API int skv_context_open(skv_model model,
                             const skv_context_options* options,
                             skv_context* context);
SKV_API int skv_context_close(skv_context context);

#define SKV_AT_END 0xFFFFFFFFu

typedef struct skv_append_options {
  uint32_t size;
  /* Position of tokens[0], or SKV_AT_END. Tokens that the context has already are compared and
   * skipped, so that an append which ended with SKV_E_DISCONNECTED or SKV_E_TIMEOUT may simply be
   * repeated; tokens that differ, or a gap, are SKV_E_INVALID_ARGUMENT. */
  uint32_t first_position;
  const uint32_t* tokens;
  uint32_t token_count;
  uint32_t end_count;
  const uint32_t* ends;   /* absolute positions after a last token of a sentence, ascending */
  uint32_t ends_final_to; /* no end will be declared at or before this position any more */
  uint32_t reserved;
  const uint8_t* extra; /* 32 bytes or NULL (zero): what else the KV of these tokens depends on */
} skv_append_options;

typedef struct skv_append_result {
  uint32_t size;
  uint32_t token_count;    /* of the context now */
  uint32_t first_sentence; /* index of the first that closed by this call */
  uint32_t closed_count;
} skv_append_result;

/* Adds tokens and sentence ends. Long appends go in several messages; after an error the context
 * may have grown by a part (skv_context_get_info tells). result may be NULL. Errors: SKV_E_STALE
 * (see skv_context_get_info). */
SKV_API int skv_context_append(skv_context context,
                               const skv_append_options* options,
                               skv_append_result* result);

typedef struct skv_context_info {
  uint32_t size;
  uint32_t token_count;
  uint32_t sentence_count; /* closed */
  uint32_t closed_blocks; /* of these, in all: position / block_tokens where the open tail begins */
  uint32_t changes;       /* times the sentences changed in a reconnection, see below */
} skv_context_info;

/* Does not block. Connecting again replays the context; should its sentences then differ from what
 * the engine was told (adopted boundaries that are no longer stored), calls with sentence indices
 * give SKV_E_STALE until this function has been called, so that no index is taken for another. */
SKV_API int skv_context_get_info(skv_context context, skv_context_info* info);

/* Block counts of the sentences [first, first + capacity), as many as there are; *count tells.
 * Sentence i begins at the sum of the block counts before it, times block_tokens. */
SKV_API int skv_context_get_sentences(
    skv_context context, uint32_t first, uint32_t* blocks, uint32_t capacity, uint32_t* count);

enum { SKV_MATCH_MISS = 0, SKV_MATCH_PENDING = 1, SKV_MATCH_HIT = 2 };

typedef struct skv_match_result {
  uint32_t size;
  uint32_t outcome;
  uint32_t hit_tokens;     /* longest prefix that is stored */
  uint32_t pending_tokens; /* the same, if what others have reserved gets committed */
  uint32_t host_tokens;    /* of hit_tokens: in host memory */
  uint32_t nvme_tokens;    /* of hit_tokens: partly on NVMe only */
} skv_match_result;

/* Longest cover of the context's tokens by stored sentences. adopt != 0: the context takes the
 * stored boundaries up to hit_tokens (sentences change: read them again) and cuts anew after them.
 * A hit is a hint, not a lease. Errors: SKV_E_BUSY (adopt after a put, load or window). */
SKV_API int skv_match(skv_context context, int adopt, skv_match_result* result);

/* Keys of a row of tokens, to be tested without a round trip. Opening and appending compute the
 * digests, once (some microseconds per block); skv_match_local then looks them up in a directory
 * that the daemon shares read-only with the clients of its space: no message, below a microsecond
 * per sentence. The first call maps it, as does the first after it grew or the daemon restarted.
 *
 * The answer has the meaning of skv_match's and is a hint: the daemon may store or evict meanwhile,
 * only skv_match, a load or a window is the authority. A sentence that found no place in the
 * directory's memory (directory.shared of the daemon) counts as a miss. A model stays open while
 * keys of it are. Errors: SKV_E_TOO_LARGE (more than 4 Mi tokens), SKV_E_UNSUPPORTED (the daemon
 * shares none: use skv_match). */
SKV_API int skv_keys_open(skv_model model, skv_keys* keys);
SKV_API int skv_keys_close(skv_keys keys);
/* extra: 32 bytes or NULL, as of skv_context_append. */
SKV_API int skv_keys_append(skv_keys keys,
                            const uint32_t* tokens,
                            uint32_t token_count,
                            const uint8_t* extra);
SKV_API int skv_match_local(skv_keys keys, skv_match_result* result);

/* ---- memory ---------------------------------------------------------------------------------- */

/* Memory that the daemon copies from (puts) and into (loads). skv_memory_create makes a sealed
 * memfd, maps it and registers it: allocate K and V in it and nothing is copied twice. Pages are
 * zero and taken when touched. skv_memory_register registers the caller's own memfd (shrink and
 * grow sealed, `bytes` long, a multiple of 4096); the descriptor is duplicated, the caller keeps
 * its own. Registered again by itself after a reconnection. Errors: SKV_E_TOO_LARGE. */
SKV_API int skv_memory_create(skv_session session, uint64_t bytes, skv_memory* memory);
SKV_API int skv_memory_register(skv_session session, int fd, uint64_t bytes, skv_memory* memory);
/* The session's staging memory, small (megabytes) and there from the start. Unlike the others it
 * belongs to one connection: SKV_E_STALE afterwards, so that bytes written before a restart of the
 * daemon are never taken for those it has now. Close it, ask again, write again. */
SKV_API int skv_session_staging(skv_session session, skv_memory* memory);
/* Unregisters and unmaps it (but see skv_hold). SKV_E_BUSY while asynchronous operations use it. An
 * operation that ended with SKV_E_TIMEOUT may still read or write the bytes until the session is
 * closed: the daemon keeps a mapping of its own, so memory is never pulled from under it. */
SKV_API int skv_memory_close(skv_memory memory);

typedef struct skv_memory_info {
  uint32_t size;
  int32_t fd;     /* borrowed: valid until close */
  void* pointer;  /* page aligned */
  uint64_t bytes; /* as asked for, rounded up to 4096 */
} skv_memory_info;
SKV_API int skv_memory_get_info(skv_memory memory, skv_memory_info* info);

/* K and V as strides (bytes) in one memory. Element (layer, head, token) of K is at k_offset +
 * (layer - first_layer) * layer_stride + head * head_stride + (token - first_token) * token_stride,
 * its k_dim values contiguous; V likewise from v_offset. first_layer is that of the call. */
typedef struct skv_strided_kv {
  uint32_t size;
  uint32_t first_token; /* position of what is at the offsets */
  skv_memory memory;
  uint64_t k_offset;
  uint64_t v_offset;
  uint64_t layer_stride;
  uint64_t head_stride;
  uint64_t token_stride;
} skv_strided_kv;

/* ---- put ------------------------------------------------------------------------------------- */

enum {
  SKV_PUT_RESERVED = 0,
  SKV_PUT_EXISTS = 1,  /* stored already: nothing to do */
  SKV_PUT_PENDING = 2, /* another session is putting it */
  SKV_PUT_FULL = 3,    /* no room now */
  SKV_PUT_COMMITTED = 4,
  SKV_PUT_INCOMPLETE = 5, /* a layer was not written */
  SKV_PUT_CANCELLED = 6,
  SKV_PUT_NOT_RESERVED = 7 /* also after a reconnection: reserve again */
};

/* Closed sentences [first, first + count) of the context. `outcomes`: count bytes (SKV_PUT_*), may
 * be NULL. Reserve makes room (waits a bounded time for it); write copies layers of reserved
 * sentences from memory, in any order; commit makes them visible to match, windows and other
 * engines, with vectors derived from the keys unless derive_vectors is 0; cancel gives the room
 * back. Errors of all: SKV_E_STALE (see skv_context_get_info). */
SKV_API int skv_put_reserve(skv_context context, uint32_t first, uint32_t count, uint8_t* outcomes);

typedef struct skv_put_write_options {
  uint32_t size;
  uint32_t first_sentence;
  uint32_t sentence_count; /* those not reserved by this session are skipped */
  uint32_t first_layer;
  uint32_t layer_count;
  uint32_t reserved;
  const skv_strided_kv* source;
} skv_put_write_options;

/* Blocks until the source may be reused (after SKV_E_TIMEOUT it may not: cancel the put first); or,
 * with ticket not NULL, returns when the request is sent and skv_wait tells. At most 128
 * asynchronous operations are in flight per session; one more waits. */
SKV_API int skv_put_write(skv_context context,
                          const skv_put_write_options* options,
                          skv_ticket* ticket);
SKV_API int skv_put_commit(
    skv_context context, uint32_t first, uint32_t count, int derive_vectors, uint8_t* outcomes);
SKV_API int skv_put_cancel(skv_context context, uint32_t first, uint32_t count, uint8_t* outcomes);

/* Vectors for stored sentences that have none of the context's index: derived from the bodies, or
 * given, one blob per sentence back to back (ipc/layout/vectors.h) at `offset` of `memory`. */
SKV_API int skv_vectors_derive(skv_context context,
                               uint32_t first,
                               uint32_t count,
                               uint8_t* outcomes);

typedef struct skv_vectors_put_options {
  uint32_t size;
  uint32_t first_sentence;
  uint32_t sentence_count;
  uint32_t reserved;
  skv_memory memory;
  uint64_t offset;
  uint64_t bytes;
} skv_vectors_put_options;
SKV_API int skv_vectors_put(skv_context context,
                            const skv_vectors_put_options* options,
                            uint8_t* outcomes);

/* ---- window ---------------------------------------------------------------------------------- */

enum { SKV_CUT_BLOCK = 0, SKV_CUT_SENTENCE = 1 };

enum { SKV_RANK_AUTO = 0, SKV_RANK_CLIENT = 1, SKV_RANK_DAEMON = 2 };

/* What scores are of. SHARES: of the attention on all closed blocks, so that it is known what a
 * read set leaves out. RELATIVE: the same blocks are read, and found with about half the reading of
 * vectors, where the index is FP16, BF16 or KEYS, a kv head has one query and the budget is at most
 * an eighth of the context; their scores are of what was looked at, larger than shares by one
 * factor per (layer, kv head), and unread_mass is 1: not known. Other kinds, more queries and short
 * contexts are ranked as with SHARES. Not with a mass or SKV_CUT_SENTENCE. */
enum { SKV_SCORES_SHARES = 0, SKV_SCORES_RELATIVE = 1 };

/* Blocks per (layer, kv head). */
typedef struct skv_window_options {
  uint32_t size;
  uint32_t budget_blocks;   /* ranked */
  uint32_t sink_blocks;     /* first of the context, always read */
  uint32_t recent_blocks;   /* last closed ones, always read */
  uint32_t resident_blocks; /* kept in slots; 0: 2.5 times the sum of the three */
  uint32_t cut;
  uint32_t coarse_blocks; /* the fine stage reads at least so many; 0: the daemon's default */
  uint32_t rank_in;       /* SKV_RANK_*: the same sets wherever it is done */
  /* 0 to 1; above 0: a (layer, kv head) reads no more ranked blocks, best first, than bring its
   * estimated share of the attention on closed blocks, sinks and recents included, to this. */
  float mass;
  /* Ranked blocks of each (layer, kv head), layer by layer, none above budget_blocks: heads that
   * look nearby need fewer. NULL and 0: all have budget_blocks. Copied. */
  uint32_t head_budget_count; /* kv heads over all layers, or 0 */
  const uint32_t* head_budgets;
  /* 0 to 1; above 0, on-change mode: a (layer, kv head) reads what it read before, and is not
   * ranked, while no sentence was added and the cosine of each of its queries with the one that it
   * was ranked by is at least this. Saves most of a prefetch; a query that is not this step's costs
   * quality. */
  float query_cosine;
  uint32_t scores; /* SKV_SCORES_* */
} skv_window_options;

/* Where skv_prefetch ranks. In the client it does so in the calling thread, on vectors that the
 * daemon shares: no message to the daemon while what is wanted is in host memory; concurrent calls
 * on one window wait for each other. In the daemon: its data thread, by the thread's channel. AUTO:
 * the client where windows read host memory in place, else the daemon. */

/* Errors: SKV_E_NO_SPACE (the resident set does not fit the tier; both numbers), SKV_E_STALE,
 * SKV_E_UNSUPPORTED (SKV_RANK_CLIENT where windows have device slots). */
SKV_API int skv_window_open(skv_context context,
                            const skv_window_options* options,
                            skv_window* window);
SKV_API int skv_window_close(skv_window window);

typedef struct skv_window_info {
  uint32_t size;
  uint32_t layer_count;
  uint32_t width;           /* most table entries of one (layer, kv head) */
  uint32_t slot_unit_bytes; /* a slot index counts these */
  const void* slots;        /* slot s is at slots + s * slot_unit_bytes */
  uint64_t slots_bytes;
  uint32_t slots_in_host; /* 1: blocks are read in place in the host memory of the session */
  uint32_t stale;         /* 1: the connection it was opened on is gone */
  const void* tables;     /* what the arrays of skv_table lie in */
  uint64_t tables_bytes;
  uint32_t rank_in; /* SKV_RANK_CLIENT or SKV_RANK_DAEMON, as it was chosen */
  uint32_t reserved;
} skv_window_info;
SKV_API int skv_window_get_info(skv_window window, skv_window_info* info);

enum { SKV_COLD_PARTIAL = 0, SKV_COLD_WAIT = 1 };

typedef struct skv_prefetch_options {
  uint32_t size;
  uint32_t first_layer;
  uint32_t layer_count; /* 0: all from first_layer */
  uint32_t cold;        /* what is on NVMe only: counts as missing, or is waited for */
  uint32_t deadline_us; /* of SKV_COLD_WAIT; 0: the daemon's default */
  uint32_t timeout_ms;  /* of the call; 0: the session's call timeout */
} skv_prefetch_options;

typedef struct skv_prefetch_result {
  uint32_t size;
  uint32_t covered_to;  /* tokens before it are the window's, the engine attends the rest */
  uint64_t version;     /* of the tables that were published */
  uint64_t bytes_moved; /* into slots */
  uint32_t hits_device; /* blocks that were there already */
  uint32_t hits_host;
  uint32_t hits_nvme;
  uint32_t misses;       /* wanted, not there in time: unread */
  uint32_t read_blocks;  /* table entries of all (layer, head)s */
  float unread_mass;     /* estimated share of attention of all that no table entry covers */
  uint32_t daemon_us;    /* spent in the daemon; of it, in ns: */
  int32_t status;        /* skv_prefetch_rows: of this row, SKV_OK or a code */
  uint32_t rank_ns;      /* ranking, sum over the rows of the call, like the two that follow */
  uint32_t cut_ns;       /* choosing */
  uint32_t write_ns;     /* writing tables */
  uint32_t daemon_ns;    /* daemon_us, finer */
  uint32_t ranked_heads; /* (layer, kv head)s that were ranked, all but what on-change mode kept */
  uint32_t reserved;
} skv_prefetch_result;

/* Ranks and makes readable what matters to `query`, then publishes the tables of these layers.
 * query: fp32 [layer][query head][k_dim], C order, in the basis of the keys, copied before the
 * daemon sees it; query_bytes must be what skv_model_query_bytes says. options may be NULL (all
 * layers, partial). Blocks. Errors: SKV_E_BUSY (readers_done is too far behind), SKV_E_TIMEOUT,
 * SKV_E_STALE, SKV_E_TOO_LARGE (65th thread). */
SKV_API int skv_prefetch(skv_window window,
                         const float* query,
                         uint64_t query_bytes,
                         const skv_prefetch_options* options,
                         skv_prefetch_result* result);

/* Many windows of one session and one model in one call: a batch of sequences. Rows are served side
 * by side and published one by one. query: fp32 [row][layer][query head][k_dim], query_bytes of all
 * rows. results: row_count structs, each with its size set; a row that failed has its code in
 * `status`. Returns SKV_OK, or the first of those codes. A window may be there once. Errors as
 * skv_prefetch; SKV_E_INVALID_ARGUMENT above SKV_PREFETCH_ROWS_MAX rows. */
#define SKV_PREFETCH_ROWS_MAX 64
SKV_API int skv_prefetch_rows(const skv_window* windows,
                              uint32_t row_count,
                              const float* query,
                              uint64_t query_bytes,
                              const skv_prefetch_options* options,
                              skv_prefetch_result* results);

/* Begins the moves that a prefetch with this query would make, and publishes nothing: tables stay
 * as they are, only what a table that is no longer read (readers_done) named may leave its slot.
 * Does not wait for the daemon, and an error there is not reported. skv_confirm, with the right
 * query, is the prefetch that follows: it moves what the guess missed and publishes. Worth it where
 * waiting for moves costs more than ranking twice; e.g. for the next layer, while this one
 * computes. */
SKV_API int skv_guess(skv_window window,
                      const float* query,
                      uint64_t query_bytes,
                      const skv_prefetch_options* options);
SKV_API int skv_confirm(skv_window window,
                        const float* query,
                        uint64_t query_bytes,
                        const skv_prefetch_options* options,
                        skv_prefetch_result* result);

enum { SKV_ORIGIN_DEVICE = 0, SKV_ORIGIN_HOST = 1, SKV_ORIGIN_NVME = 2 };

/* What to read of one layer, CSR: entries of kv head h are [indptr[h], indptr[h + 1]), ascending by
 * block. */
typedef struct skv_table {
  uint32_t size;
  uint32_t covered_to;
  uint64_t version;
  uint32_t entry_count;
  uint32_t head_count;
  float unread_mass;
  uint32_t reserved;
  const uint32_t* indptr;   /* head_count + 1 */
  const uint32_t* slot;     /* entry_count each */
  const uint32_t* block;    /* position / block_tokens */
  const uint32_t* sentence; /* index in the context */
  const float* score;       /* estimated share of attention */
  const uint8_t* origin;    /* SKV_ORIGIN_* */
} skv_table;

/* The newest table of a layer. Does not block, does not ask the daemon. The arrays, and the slots
 * that they name, keep their contents until skv_readers_done passes `version`; valid memory until
 * the window is closed and no hold is left. Errors: SKV_E_NOT_FOUND (no prefetch yet),
 * SKV_E_CORRUPT, SKV_E_STALE (the daemon is gone; arrays read before stay readable). */
SKV_API int skv_window_table(skv_window window, uint32_t layer, skv_table* table);

/* The address of one block: K [block_tokens][k_dim], then V [block_tokens][v_dim]. Checks slot and
 * layer; for inner loops use skv_window_info::slots. */
SKV_API int skv_window_slot(skv_window window, uint32_t layer, uint32_t slot, const void** block);

/* The engine no longer reads any table of this version or an older one, nor slots which only those
 * name. Call it after each step, else a later prefetch ends as SKV_E_BUSY. Does not block. Versions
 * never seen are SKV_E_INVALID_ARGUMENT; an older one than before is no change. */
SKV_API int skv_readers_done(skv_window window, uint64_t version);

/* ---- load ------------------------------------------------------------------------------------ */

typedef struct skv_load_options {
  uint32_t size;
  uint32_t first_sentence;
  uint32_t sentence_count;
  uint32_t first_layer;
  uint32_t layer_count;
  uint32_t deadline_ms;              /* for bytes from NVMe; 0: the daemon's default */
  const skv_strided_kv* destination; /* skv_load only */
} skv_load_options;

typedef struct skv_load_result {
  uint32_t size;
  uint32_t host_chunks; /* chunks read from host memory */
  uint32_t nvme_chunks; /* chunks that came from NVMe */
  uint32_t reserved;
  uint64_t bytes;
} skv_load_result;

/* Whole sentences back, copied to options->destination. result may be NULL. Blocks; with ticket not
 * NULL it returns when the request is sent (result is then left alone: give one to skv_wait).
 * Errors: SKV_E_NOT_FOUND (a sentence is not stored), SKV_E_CORRUPT, SKV_E_NO_SPACE,
 * SKV_E_STALE. */
SKV_API int skv_load(skv_context context,
                     const skv_load_options* options,
                     skv_ticket* ticket,
                     skv_load_result* result);

/* The same without a copy: the bodies stay where they are in host memory, leased until
 * skv_lease_release. result may be NULL. What is in host memory is leased without a message, in a
 * microsecond or two, but for the first call on a context; for what is not, or beyond what a
 * session may lease in that way (sessions.in_place), the daemon is asked. */
SKV_API int skv_load_in_place(skv_context context,
                              const skv_load_options* options,
                              skv_lease* lease,
                              skv_load_result* result);

/* Where one layer of one leased sentence is: [kv_heads][blocks] of K [block_tokens][k_dim], then V
 * [block_tokens][v_dim], all contiguous. `sentence` counts from 0 in the lease. */
typedef struct skv_leased_layer {
  uint32_t size;
  uint32_t kv_heads;
  uint32_t blocks;
  uint32_t block_bytes;
  const void* pointer;
} skv_leased_layer;
/* Does not block. Errors: SKV_E_STALE: the daemon is gone, treat as a miss. Check once more after
 * reading: a lease that is still good then was good throughout. */
SKV_API int skv_lease_get_layer(skv_lease lease,
                                uint32_t sentence,
                                uint32_t layer,
                                skv_leased_layer* where);
/* Once; the second time is SKV_E_UNKNOWN_HANDLE. Does not block. A stale lease is released without
 * the daemon. A lease outlives its context's handle; it keeps bodies in host memory for as long as
 * it is not released. */
SKV_API int skv_lease_release(skv_lease lease);

/* ---- the rest -------------------------------------------------------------------------------- */

enum { SKV_FLUSH_HOST = 1, SKV_FLUSH_DURABLE = 2 };

/* Waits until all committed sentences of the space are at that level. timeout_ms 0: the session's.
 * sentences may be NULL. Errors: SKV_E_UNSUPPORTED (durable without NVMe), SKV_E_IO. */
SKV_API int skv_flush(skv_session session, int level, uint32_t timeout_ms, uint64_t* sentences);

/* Drops stored sentences of the context from first_sentence on, leaf first, except what is leased
 * or needed by another stored path. Outputs may be NULL. Errors: SKV_E_STALE. */
SKV_API int skv_drop(skv_context context,
                     uint32_t first_sentence,
                     uint32_t* dropped,
                     uint32_t* kept);

enum { SKV_STAT_STATUS = 0, SKV_STAT_CONTEXTS = 1, SKV_STAT_SESSION = 2 };

/* What the daemon tells of itself, as JSON (keys: docs/protocol.md). *json is to be given to
 * skv_free. SKV_STAT_CONTEXTS comes in pages: begin with first = 0, go on with *next until 0. */
SKV_API int skv_stat(skv_session session, int kind, uint32_t first, char** json, uint32_t* next);
SKV_API void skv_free(void* pointer); /* NULL is fine */

/* Waits for one asynchronous operation and returns how it ended; the ticket is then spent (again:
 * SKV_E_UNKNOWN_HANDLE). timeout_ms 0: only looks. SKV_E_TIMEOUT leaves the ticket open and means
 * that the operation goes on. result: of a load, may be NULL. */
SKV_API int skv_wait(skv_session session,
                     skv_ticket ticket,
                     uint32_t timeout_ms,
                     skv_load_result* result);

/* NOLINTEND(readability-identifier-naming) */

#ifdef __cplusplus
}
#endif

#endif /* SKV_CLIENT_SKV_H_ */
