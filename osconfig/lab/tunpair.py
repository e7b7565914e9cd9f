# tunpair.py NAME HERE THERE: a TUN whose packets go to the socket THERE, and that has those that arrive at HERE. Two of
# these, each in a network namespace of its own, are a tunnel.
import fcntl, os, select, socket, struct, sys

name, here, there = sys.argv[1:]
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
if os.path.exists(here):
    os.unlink(here)
s.bind(here)
fd = os.open("/dev/net/tun", os.O_RDWR)
fcntl.ioctl(fd, 0x400454CA, struct.pack("16sH22x", name.encode(), 0x1001))  # TUNSETIFF, IFF_TUN | IFF_NO_PI
while True:
    for ready in select.select([fd, s], [], [])[0]:
        try:
            if ready is s:
                os.write(fd, s.recv(65536))
            else:
                s.sendto(os.read(fd, 65536), there)
        except OSError:
            pass  # the other end is down
