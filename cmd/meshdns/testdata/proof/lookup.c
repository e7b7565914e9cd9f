/* lookup NAME...: prints each name with its first IPv4 address, as the C library that it is linked with finds it. */
#include <arpa/inet.h>
#include <netdb.h>
#include <stdio.h>

int main(int argc, char **argv) {
	int failed = 0;
	for (int i = 1; i < argc; i++) {
		struct addrinfo hints = {.ai_family = AF_INET, .ai_socktype = SOCK_STREAM}, *found;
		char text[INET_ADDRSTRLEN];
		int err = getaddrinfo(argv[i], NULL, &hints, &found);
		if (err) {
			printf("%s: %s\n", argv[i], gai_strerror(err));
			failed = 1;
			continue;
		}
		printf("%s %s\n", argv[i],
		       inet_ntop(AF_INET, &((struct sockaddr_in *)found->ai_addr)->sin_addr, text, sizeof text));
		freeaddrinfo(found);
	}
	return failed;
}
