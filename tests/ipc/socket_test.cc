#include "ipc/socket.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <iterator>
#include <utility>

#include "ipc/codec.h"
#include "ipc/shared_memory.h"

namespace skv {
namespace {

size_t open_descriptors() {
  return static_cast<size_t>(std::distance(std::filesystem::directory_iterator("/proc/self/fd"),
                                           std::filesystem::directory_iterator()));
}

struct Pair {
  Pair() {
    SocketPair ends = create_socket_pair().value();
    left = FrameSocket(std::move(ends.first));
    right = FrameSocket(std::move(ends.second));
  }
  FrameSocket left;
  FrameSocket right;
};

// As a hostile peer would: any bytes with any descriptors.
void send_raw(int socket, std::span<const uint8_t> bytes, const std::vector<int>& fds = {}) {
  iovec part{const_cast<uint8_t*>(bytes.data()), bytes.size()};
  std::vector<char> control(CMSG_SPACE(fds.size() * sizeof(int)));
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  if (!fds.empty()) {
    message.msg_control = control.data();
    message.msg_controllen = control.size();
    cmsghdr* rights = CMSG_FIRSTHDR(&message);
    rights->cmsg_level = SOL_SOCKET;
    rights->cmsg_type = SCM_RIGHTS;
    rights->cmsg_len = CMSG_LEN(fds.size() * sizeof(int));
    std::memcpy(CMSG_DATA(rights), fds.data(), fds.size() * sizeof(int));
  }
  ASSERT_EQ(::sendmsg(socket, &message, 0), static_cast<ssize_t>(bytes.size()));
}

std::vector<uint8_t> release_frame(uint16_t fd_count = 0) {
  return encode_request(Verb::kRelease, Ticket{3}, Release{.lease = 9}, fd_count);
}

TEST(FrameSocket, FrameAndDescriptorsCross) {
  Pair pair;
  const UniqueFd first = create_shared_memory("first", 4096).value();
  const UniqueFd second = create_shared_memory("second", 8192).value();
  const std::array<int, 2> fds{first.get(), second.get()};
  ASSERT_EQ(pair.left.send(release_frame(2), fds).value(), SendOutcome::kSent);

  Frame frame;
  ASSERT_EQ(pair.right.receive(frame).value(), ReceiveOutcome::kFrame);
  EXPECT_EQ(frame.header.ticket, 3U);
  EXPECT_EQ(decode_body<Release>(frame.body).value().lease, 9U);
  ASSERT_EQ(frame.fds.size(), 2U);
  EXPECT_EQ(shared_memory_bytes(frame.fds[0].get()).value(), 4096U);
  EXPECT_EQ(shared_memory_bytes(frame.fds[1].get()).value(), 8192U);
  EXPECT_EQ(::fcntl(frame.fds[0].get(), F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
}

TEST(FrameSocket, LargestFrameCrosses) {
  Pair pair;
  std::string text(kMessageBytesMax - sizeof(FrameHeader) - 4 - 8, 'x');
  // A string may have kItemsMax bytes; two of them fill a frame.
  StatReply half;
  half.json = text.substr(0, kItemsMax);
  ASSERT_EQ(pair.left.send(encode_frame(FrameHeader{}, half)).value(), SendOutcome::kSent);
  std::vector<uint8_t> largest(kMessageBytesMax);
  FrameHeader header;
  header.body_bytes = kMessageBytesMax - sizeof header;
  std::memcpy(largest.data(), &header, sizeof header);
  ASSERT_EQ(pair.left.send(largest).value(), SendOutcome::kSent);
  Frame frame;
  ASSERT_EQ(pair.right.receive(frame).value(), ReceiveOutcome::kFrame);
  EXPECT_EQ(decode_body<StatReply>(frame.body).value().json.size(), kItemsMax);
  ASSERT_EQ(pair.right.receive(frame).value(), ReceiveOutcome::kFrame);
  EXPECT_EQ(frame.body.size(), kMessageBytesMax - sizeof header);
}

TEST(FrameSocket, OutcomesAreNotErrors) {
  Pair pair;
  Frame frame;
  EXPECT_EQ(pair.right.receive(frame).value(), ReceiveOutcome::kWouldBlock);
  SendOutcome sent = SendOutcome::kSent;
  for (int i = 0; i < 100000 && sent == SendOutcome::kSent; ++i) {
    sent = pair.left.send(release_frame()).value();
  }
  EXPECT_EQ(sent, SendOutcome::kWouldBlock);
  EXPECT_EQ(pair.right.receive(frame).value(), ReceiveOutcome::kFrame);
  pair.left.close();
  ReceiveOutcome got = ReceiveOutcome::kFrame;
  while (got == ReceiveOutcome::kFrame) got = pair.right.receive(frame).value();
  EXPECT_EQ(got, ReceiveOutcome::kClosed);
  const Result<SendOutcome> late = pair.right.send(release_frame());
  ASSERT_FALSE(late.ok());
  EXPECT_EQ(late.error().code, ErrorCode::kDisconnected);
}

TEST(FrameSocket, WhatCannotBeSentIsRefused) {
  Pair pair;
  EXPECT_EQ(pair.left.send(std::vector<uint8_t>(kMessageBytesMax + 1)).error().code,
            ErrorCode::kTooLarge);
  const std::vector<int> fds(kFdsMax + 1, 0);
  EXPECT_EQ(pair.left.send(release_frame(), fds).error().code, ErrorCode::kTooLarge);
}

// Goal: whatever a peer sends, it is an error, and no descriptor stays open.
TEST(FrameSocket, HostileFramesAreProtocolErrorsAndLeakNothing) {
  Pair pair;
  const UniqueFd file = create_shared_memory("file", 4096).value();
  const size_t before = open_descriptors();
  const auto answer = [&](std::span<const uint8_t> bytes, const std::vector<int>& fds) {
    send_raw(pair.left.fd(), bytes, fds);
    Frame frame;
    const Result<ReceiveOutcome> got = pair.right.receive(frame);
    if (got.ok()) return std::string("taken");
    EXPECT_EQ(got.error().code, ErrorCode::kProtocol);
    return got.error().message;
  };
  const std::vector<int> one(1, file.get());
  EXPECT_EQ(answer(release_frame(0), one), "a frame announces 0 descriptors and brings 1");
  EXPECT_EQ(answer(release_frame(2), one), "a frame announces 2 descriptors and brings 1");
  EXPECT_EQ(answer(release_frame(4), std::vector<int>(5, file.get())),
            "more than 4 descriptors with one frame");
  EXPECT_EQ(answer(release_frame(4), std::vector<int>(200, file.get())),
            "more than 4 descriptors with one frame");
  EXPECT_EQ(answer(std::vector<uint8_t>(kMessageBytesMax + 1), one),
            "a frame is above 65536 bytes");
  EXPECT_EQ(answer(std::vector<uint8_t>(5), one), "a frame of 5 bytes has no header (32)");
  EXPECT_EQ(answer(std::vector<uint8_t>(64), one), "header field magic is wrong");
  EXPECT_EQ(open_descriptors(), before);

  Frame frame;  // an empty datagram reads like the end
  send_raw(pair.left.fd(), {}, {});
  EXPECT_EQ(pair.right.receive(frame).value(), ReceiveOutcome::kClosed);
}

class Folder : public ::testing::Test {
 protected:
  Folder() {
    std::string pattern = "/tmp/skv_socket_XXXXXX";
    folder_ = ::mkdtemp(pattern.data());
    path_ = folder_ + "/control.sock";
  }
  ~Folder() override { std::filesystem::remove_all(folder_); }
  std::string folder_;
  std::string path_;
};
using Listening = Folder;

TEST_F(Listening, ConnectAcceptAndCredentials) {
  EXPECT_EQ(connect_to(path_).error().code, ErrorCode::kDisconnected);
  const UniqueFd listener = listen_on({.path = path_, .mode = 0660}).value();
  struct stat status {};
  ASSERT_EQ(::stat(path_.c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777, 0660U);
  EXPECT_FALSE(accept_from(listener.get()).value().has_value());

  FrameSocket client(connect_to(path_).value());
  std::optional<UniqueFd> accepted = accept_from(listener.get()).value();
  ASSERT_TRUE(accepted.has_value());
  const PeerCredentials peer = peer_credentials(accepted->get()).value();
  EXPECT_EQ(peer.pid, ::getpid());
  EXPECT_EQ(peer.uid, ::geteuid());
  EXPECT_EQ(peer.gid, ::getegid());
  FrameSocket server(std::move(*accepted));
  ASSERT_EQ(client.send(release_frame()).value(), SendOutcome::kSent);
  Frame frame;
  EXPECT_EQ(server.receive(frame).value(), ReceiveOutcome::kFrame);
}

TEST_F(Listening, DeadSocketIsReplacedALiveOneIsNot) {
  UniqueFd listener = listen_on({.path = path_}).value();
  EXPECT_EQ(listen_on({.path = path_}).error().code, ErrorCode::kBusy);
  listener.reset();
  EXPECT_EQ(connect_to(path_).error().code, ErrorCode::kDisconnected);
  EXPECT_TRUE(listen_on({.path = path_}).ok());
}

TEST_F(Listening, WhatIsNotASocketIsNeverReplaced) {
  const UniqueFd file(::open(path_.c_str(), O_CREAT | O_RDWR | O_CLOEXEC, 0600));
  EXPECT_FALSE(listen_on({.path = path_}).ok());
  EXPECT_TRUE(std::filesystem::is_regular_file(path_));
}

TEST_F(Listening, PathsAreLimited) {
  EXPECT_EQ(listen_on({.path = std::string(108, 'x')}).error().code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(connect_to("").error().code, ErrorCode::kInvalidArgument);
}

// Goal: a peer's death is seen although a child of it keeps the connection open.
TEST_F(Listening, PidfdTellsDeathNotOnlyHangUp) {
  const UniqueFd listener = listen_on({.path = path_}).value();
  ::prctl(PR_SET_CHILD_SUBREAPER, 1);  // the grandchild becomes ours to wait for
  const pid_t child = ::fork();
  if (child == 0) {
    ::setpgid(0, 0);
    const Result<UniqueFd> socket = connect_to(path_);
    // Both hold the connection; the younger one says so.
    if (::fork() == 0) (void)::send(socket.value().get(), "here", 4, 0);
    for (;;) ::pause();
  }
  pollfd waiting{listener.get(), POLLIN, 0};
  ASSERT_EQ(::poll(&waiting, 1, 30000), 1);
  std::optional<UniqueFd> accepted = accept_from(listener.get()).value();
  ASSERT_TRUE(accepted.has_value());
  EXPECT_EQ(peer_credentials(accepted->get()).value().pid, child);
  const UniqueFd pidfd = open_peer_pidfd(accepted->get()).value();
  pollfd death{pidfd.get(), POLLIN, 0};
  EXPECT_EQ(::poll(&death, 1, 0), 0);
  pollfd forked{accepted->get(), POLLIN, 0};
  ASSERT_EQ(::poll(&forked, 1, 30000), 1);
  std::array<char, 8> here{};
  ASSERT_EQ(::recv(accepted->get(), here.data(), here.size(), 0), 4);
  ASSERT_EQ(::kill(child, SIGKILL), 0);
  EXPECT_EQ(::poll(&death, 1, 30000), 1);
  ::waitpid(child, nullptr, 0);
  FrameSocket server(std::move(*accepted));
  Frame frame;
  EXPECT_EQ(server.receive(frame).value(), ReceiveOutcome::kWouldBlock);
  ::kill(-child, SIGKILL);  // what is left of its group
  ::waitpid(-child, nullptr, 0);
}

}  // namespace
}  // namespace skv
