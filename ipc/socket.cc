#include "ipc/socket.h"

#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>

#include <array>
#include <cerrno>
#include <cstring>

#include "ipc/codec.h"
#include "ipc/os_error.h"

namespace skv {
namespace {

#ifndef SO_PEERPIDFD
constexpr int kSoPeerPidFd = 77;  // Linux 6.5; the headers of Debian 12 lack it
#else
constexpr int kSoPeerPidFd = SO_PEERPIDFD;
#endif

Result<sockaddr_un> address_of(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof address.sun_path) {
    return Error{ErrorCode::kInvalidArgument,
                 "socket path '" + path + "' has " + std::to_string(path.size()) +
                     " bytes, allowed are 1 to " + std::to_string(sizeof address.sun_path - 1)};
  }
  std::memcpy(address.sun_path, path.data(), path.size());
  return address;
}

Result<UniqueFd> new_socket() {
  UniqueFd fd(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd.valid()) return os_error("socket(AF_UNIX, SOCK_SEQPACKET)");
  return fd;
}

// Takes every descriptor out of the control messages, so that none leaks whatever else is wrong.
std::vector<UniqueFd> take_fds(msghdr& message) {
  std::vector<UniqueFd> fds;
  for (cmsghdr* part = CMSG_FIRSTHDR(&message); part != nullptr;
       part = CMSG_NXTHDR(&message, part)) {
    if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS) continue;
    const size_t count = (part->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < count; ++i) {
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(part) + i * sizeof fd, sizeof fd);
      fds.emplace_back(fd);
    }
  }
  return fds;
}

}  // namespace

Result<UniqueFd> listen_on(const ListenOptions& options) {
  Result<sockaddr_un> address = address_of(options.path);
  if (!address.ok()) return address.error();
  Result<UniqueFd> socket = new_socket();
  if (!socket.ok()) return socket.error();
  const int fd = socket.value().get();
  const auto* name = reinterpret_cast<const sockaddr*>(&address.value());

  int bound = ::bind(fd, name, sizeof(sockaddr_un));
  if (bound != 0 && errno == EADDRINUSE) {
    // Left behind by a process that died, or alive? Only a connect can tell.
    Result<UniqueFd> probe = connect_to(options.path);
    if (probe.ok() || probe.error().code != ErrorCode::kDisconnected) {
      return Error{ErrorCode::kBusy, "another process listens on " + options.path};
    }
    struct stat status {};
    if (::lstat(options.path.c_str(), &status) == 0 && !S_ISSOCK(status.st_mode)) {
      return Error{ErrorCode::kInvalidArgument,
                   options.path + " exists and is not a socket; not replaced"};
    }
    ::unlink(options.path.c_str());
    bound = ::bind(fd, name, sizeof(sockaddr_un));
  }
  if (bound != 0) return os_error("bind " + options.path);
  // Nobody can connect before listen(), so the mode is in force in time.
  if (::chmod(options.path.c_str(), options.mode) != 0) return os_error("chmod " + options.path);
  if (::listen(fd, options.backlog) != 0) return os_error("listen on " + options.path);
  return socket;
}

Result<UniqueFd> connect_to(const std::string& path) {
  Result<sockaddr_un> address = address_of(path);
  if (!address.ok()) return address.error();
  Result<UniqueFd> socket = new_socket();
  if (!socket.ok()) return socket.error();
  while (::connect(socket.value().get(), reinterpret_cast<const sockaddr*>(&address.value()),
                   sizeof(sockaddr_un)) != 0) {
    if (errno == EINTR) continue;
    if (errno == EAGAIN) return Error{ErrorCode::kBusy, "connect " + path + ": backlog is full"};
    if (errno == ECONNREFUSED || errno == ENOENT) {
      return Error{ErrorCode::kDisconnected, "nobody listens on " + path};
    }
    if (errno == EACCES || errno == EPERM) {
      return Error{ErrorCode::kDenied, "connect " + path + ": " + errno_text(errno)};
    }
    return os_error("connect " + path);
  }
  return socket;
}

Result<std::optional<UniqueFd>> accept_from(int listener) {
  for (;;) {
    UniqueFd fd(::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (fd.valid()) return std::optional<UniqueFd>(std::move(fd));
    // ECONNABORTED: the peer left while it waited; look for the next one.
    if (errno == EINTR || errno == ECONNABORTED) continue;
    if (errno == EAGAIN || errno == EWOULDBLOCK) return std::optional<UniqueFd>();
    return os_error(errno == EMFILE ? "accept (EMFILE)" : "accept");
  }
}

Result<SocketPair> create_socket_pair() {
  std::array<int, 2> ends{-1, -1};
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends.data()) != 0) {
    return os_error("socketpair");
  }
  return SocketPair{UniqueFd(ends[0]), UniqueFd(ends[1])};
}

Result<PeerCredentials> peer_credentials(int socket) {
  ucred credentials{};
  socklen_t bytes = sizeof credentials;
  if (::getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &credentials, &bytes) != 0) {
    return os_error("getsockopt(SO_PEERCRED)");
  }
  return PeerCredentials{credentials.pid, credentials.uid, credentials.gid};
}

Result<UniqueFd> open_peer_pidfd(int socket) {
  int fd = -1;
  socklen_t bytes = sizeof fd;
  if (::getsockopt(socket, SOL_SOCKET, kSoPeerPidFd, &fd, &bytes) == 0) return UniqueFd(fd);
  const Result<PeerCredentials> peer = peer_credentials(socket);
  if (!peer.ok()) return peer.error();
  UniqueFd opened(static_cast<int>(::syscall(SYS_pidfd_open, peer.value().pid, 0)));
  if (!opened.valid()) return os_error("pidfd_open " + std::to_string(peer.value().pid));
  // Above 2 and close-on-exec by definition of pidfd_open.
  return opened;
}

Result<SendOutcome> FrameSocket::send(std::span<const uint8_t> frame, std::span<const int> fds) {
  if (frame.size() > kMessageBytesMax) {
    return Error{ErrorCode::kTooLarge, "a frame of " + std::to_string(frame.size()) +
                                           " bytes is above " + std::to_string(kMessageBytesMax)};
  }
  if (fds.size() > kFdsMax) {
    return Error{ErrorCode::kTooLarge,
                 std::to_string(fds.size()) + " descriptors are above " + std::to_string(kFdsMax)};
  }
  iovec part{const_cast<uint8_t*>(frame.data()), frame.size()};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(kFdsMax * sizeof(int))> control{};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  if (!fds.empty()) {
    message.msg_control = control.data();
    message.msg_controllen = CMSG_SPACE(fds.size_bytes());
    cmsghdr* rights = CMSG_FIRSTHDR(&message);
    rights->cmsg_level = SOL_SOCKET;
    rights->cmsg_type = SCM_RIGHTS;
    rights->cmsg_len = CMSG_LEN(fds.size_bytes());
    std::memcpy(CMSG_DATA(rights), fds.data(), fds.size_bytes());
  }
  for (;;) {
    const ssize_t sent = ::sendmsg(socket_.get(), &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent >= 0) return SendOutcome::kSent;  // a datagram goes as a whole or not at all
    if (errno == EINTR) continue;
    if (errno == EAGAIN || errno == EWOULDBLOCK) return SendOutcome::kWouldBlock;
    if (errno == EPIPE || errno == ECONNRESET || errno == ENOTCONN) {
      return Error{ErrorCode::kDisconnected, "the peer closed the connection"};
    }
    return os_error("sendmsg");
  }
}

Result<ReceiveOutcome> FrameSocket::receive(Frame& frame) {
  buffer_.resize(kMessageBytesMax);
  iovec part{buffer_.data(), buffer_.size()};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(kFdsMax * sizeof(int))> control{};
  msghdr message{};
  ssize_t got = 0;
  do {
    message = msghdr{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    message.msg_control = control.data();
    message.msg_controllen = control.size();
    got = ::recvmsg(socket_.get(), &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  } while (got < 0 && errno == EINTR);
  if (got < 0) {
    if (errno == EAGAIN || errno == EWOULDBLOCK) return ReceiveOutcome::kWouldBlock;
    if (errno == ECONNRESET) return ReceiveOutcome::kClosed;
    return os_error("recvmsg");
  }

  std::vector<UniqueFd> fds = take_fds(message);
  if ((message.msg_flags & MSG_CTRUNC) != 0) {
    return Error{ErrorCode::kProtocol,
                 "more than " + std::to_string(kFdsMax) + " descriptors with one frame"};
  }
  if ((message.msg_flags & MSG_TRUNC) != 0) {
    return Error{ErrorCode::kProtocol,
                 "a frame is above " + std::to_string(kMessageBytesMax) + " bytes"};
  }
  // A datagram of no bytes and the end of the stream look the same; neither is a frame.
  if (got == 0) return ReceiveOutcome::kClosed;

  const std::span<const uint8_t> bytes(buffer_.data(), static_cast<size_t>(got));
  Result<FrameHeader> header = decode_header(bytes);
  if (!header.ok()) return header.error();
  if (header.value().fd_count != fds.size()) {
    return Error{ErrorCode::kProtocol, "a frame announces " +
                                           std::to_string(header.value().fd_count) +
                                           " descriptors and brings " + std::to_string(fds.size())};
  }
  frame.header = header.value();
  frame.body.assign(bytes.begin() + sizeof(FrameHeader), bytes.end());
  frame.fds = std::move(fds);
  return ReceiveOutcome::kFrame;
}

}  // namespace skv
