#include "ipc/identity/digest.h"

#include <openssl/evp.h>

#include <memory>
#include <string_view>

#include "ipc/types/check.h"
#include "ipc/types/wire.h"

namespace skv {
namespace {

// Each kind of digest has its own tag, so that no input of one can be an input of another. A tag
// ends with a zero byte. P_i has none: it is the only kind whose input is 64 + 4 * block_tokens
// bytes, and that begins with a digest.
constexpr std::string_view kRootTag = digest_tag("skv.prefix.1");
constexpr std::string_view kSentenceTag = digest_tag("skv.sentence.1");
constexpr std::string_view kBoundaryTag = digest_tag("skv.boundary.1");

void put_text(std::vector<uint8_t>& bytes, std::string_view text) {
  bytes.insert(bytes.end(), text.begin(), text.end());
}

Digest tagged_key(std::string_view tag,
                  const Digest& space_salt,
                  const Digest& fingerprint,
                  const Digest& prefix_digest,
                  uint32_t position) {
  std::vector<uint8_t> bytes;
  bytes.reserve(tag.size() + 3 * sizeof(Digest) + sizeof position);
  put_text(bytes, tag);
  WireWriter writer(bytes);
  writer.put(space_salt);
  writer.put(fingerprint);
  writer.put(prefix_digest);
  writer.put(position);
  return sha256(bytes);
}

}  // namespace

Digest sha256(std::span<const uint8_t> bytes) {
  // Looking the algorithm up and making a context cost as much as the hash of a block.
  struct Free {
    void operator()(EVP_MD_CTX* context) const { EVP_MD_CTX_free(context); }
    void operator()(EVP_MD* algorithm) const { EVP_MD_free(algorithm); }
  };
  static const std::unique_ptr<EVP_MD, Free> kAlgorithm(EVP_MD_fetch(nullptr, "SHA256", nullptr));
  thread_local const std::unique_ptr<EVP_MD_CTX, Free> kContext(EVP_MD_CTX_new());
  Digest digest;
  unsigned int written = 0;
  const bool done = EVP_DigestInit_ex(kContext.get(), kAlgorithm.get(), nullptr) == 1 &&
                    EVP_DigestUpdate(kContext.get(), bytes.data(), bytes.size()) == 1 &&
                    EVP_DigestFinal_ex(kContext.get(), digest.bytes.data(), &written) == 1;
  SKV_CHECK(done && written == digest.bytes.size(), "SHA-256 of libcrypto failed");
  return digest;
}

Digest root_digest(uint32_t block_tokens) {
  std::vector<uint8_t> bytes;
  put_text(bytes, kRootTag);
  WireWriter(bytes).put(block_tokens);
  return sha256(bytes);
}

Digest next_digest(const Digest& previous,
                   std::span<const uint32_t> block_tokens,
                   const Digest& extra) {
  std::vector<uint8_t> bytes;
  bytes.reserve(2 * sizeof(Digest) + block_tokens.size_bytes());
  WireWriter writer(bytes);
  writer.put(previous);
  for (const uint32_t token : block_tokens) writer.put(token);
  writer.put(extra);
  return sha256(bytes);
}

Digest sentence_key(const SentenceKeyParts& parts) {
  return tagged_key(kSentenceTag, parts.space_salt, parts.fingerprint, parts.end_digest,
                    parts.first_position);
}

Digest boundary_key(const BoundaryKeyParts& parts) {
  return tagged_key(kBoundaryTag, parts.space_salt, parts.fingerprint, parts.prefix_digest,
                    parts.position);
}

}  // namespace skv
