#pragma once

#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "ipc/messages.h"
#include "ipc/types/result.h"
#include "ipc/unique_fd.h"

namespace skv {

// The control socket: SOCK_SEQPACKET over AF_UNIX, one frame per datagram, descriptors beside it.
// Every socket here is non-blocking and close-on-exec.

// A path that nobody listens on any more is replaced; a live listener is kBusy.
struct ListenOptions {
  std::string path;  // at most 107 bytes
  mode_t mode = 0600;
  int backlog = 128;
};
Result<UniqueFd> listen_on(const ListenOptions& options);
// kDisconnected: nobody listens there. kBusy: the listener's backlog is full, try again.
Result<UniqueFd> connect_to(const std::string& path);
// nullopt: nobody waits. kIo with EMFILE in the text: no descriptor left in this process.
Result<std::optional<UniqueFd>> accept_from(int listener);
// Two connected ends, for a child process and for tests.
struct SocketPair {
  UniqueFd first;
  UniqueFd second;
};
Result<SocketPair> create_socket_pair();

// Who connected, as the kernel recorded it at connect().
struct PeerCredentials {
  pid_t pid = 0;
  uid_t uid = 0;
  gid_t gid = 0;
};
Result<PeerCredentials> peer_credentials(int socket);
// Becomes readable when the peer's process has ended, whatever its children inherited. Race-free
// where the kernel has SO_PEERPIDFD (6.5); elsewhere the caller checks that the socket is still
// connected afterwards, since a pid can be used again.
Result<UniqueFd> open_peer_pidfd(int socket);

struct Frame {
  FrameHeader header;
  std::vector<uint8_t> body;
  std::vector<UniqueFd> fds;  // exactly header.fd_count
  bool by_channel = false;    // it did not come by this socket: no descriptor can go with the reply
};

enum class SendOutcome : uint8_t { kSent, kWouldBlock };
enum class ReceiveOutcome : uint8_t { kFrame, kWouldBlock, kClosed };

// One end of the control socket.
//
// Thread  one at a time.
// Owns    the socket and a receive buffer of one frame.
// Errors  kProtocol: not a frame, cut off, or its descriptors are not those it announces (all
//         received ones are closed); the caller closes the connection. kTooLarge: the frame to send
//         is above kMessageBytesMax. kDisconnected: the peer is gone.
class FrameSocket {
 public:
  FrameSocket() = default;
  explicit FrameSocket(UniqueFd socket) : socket_(std::move(socket)) {}

  int fd() const { return socket_.get(); }
  bool valid() const { return socket_.valid(); }
  void close() { socket_.reset(); }

  // `fds` stay the caller's; the kernel keeps its own reference in flight. Their number must be the
  // frame's fd_count.
  Result<SendOutcome> send(std::span<const uint8_t> frame, std::span<const int> fds = {});
  Result<ReceiveOutcome> receive(Frame& frame);

 private:
  UniqueFd socket_;
  std::vector<uint8_t> buffer_;
};

}  // namespace skv
