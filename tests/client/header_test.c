/* Goal: client/skv.h is C, and what it declares links from C. */
#include "client/skv.h"

int skv_header_compiles_as_c(void);

int skv_header_compiles_as_c(void) {
  skv_session session = NULL;
  skv_session_options options = {sizeof options, 1, 0, 0, "/nowhere/skvd.sock", "a C program"};
  if (skv_session_open(&options, &session) != SKV_E_DISCONNECTED) return SKV_E_INTERNAL;
  if (skv_last_error()[0] == '\0') return SKV_E_INTERNAL;
  return skv_session_close(session) == SKV_E_UNKNOWN_HANDLE ? SKV_OK : SKV_E_INTERNAL;
}
