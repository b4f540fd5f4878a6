/* XFRM_MSG_MIGRATE as the kernel's own header has it: iproute2 sends none. Prints one message in hexadecimal.
 *
 * Policy 10.1.0.0/16 to 10.2.0.0/16, out, if_id 42: ESP in tunnel mode with reqid 7 goes from 192.0.2.1 - 192.0.2.2 to
 * 192.0.2.1[4500] - 198.51.100.9[40001].
 */
#include <arpa/inet.h>
#include <linux/netlink.h>
#include <linux/udp.h>
#include <linux/xfrm.h>
#include <stdio.h>
#include <string.h>

static unsigned char message[1024];
static size_t length;

static void *put(const void *value, size_t octets)
{
    void *place = memcpy(message + length, value, octets);
    length += (octets + 3) & ~3;
    return place;
}

static void attribute(unsigned short type, const void *value, size_t octets)
{
    struct nlattr header = {.nla_len = NLA_HDRLEN + octets, .nla_type = type};
    put(&header, sizeof header);
    put(value, octets);
}

int main(void)
{
    struct nlmsghdr header = {.nlmsg_type = XFRM_MSG_MIGRATE, .nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK};
    struct xfrm_userpolicy_id policy = {.dir = XFRM_POLICY_OUT};
    struct xfrm_user_migrate ends = {.proto = IPPROTO_ESP, .mode = XFRM_MODE_TUNNEL, .reqid = 7};
    struct xfrm_encap_tmpl udp = {.encap_type = UDP_ENCAP_ESPINUDP};
    __u32 if_id = 42;

    policy.sel.family = AF_INET;
    policy.sel.prefixlen_s = policy.sel.prefixlen_d = 16;
    inet_pton(AF_INET, "10.1.0.0", &policy.sel.saddr);
    inet_pton(AF_INET, "10.2.0.0", &policy.sel.daddr);
    ends.old_family = ends.new_family = AF_INET;
    inet_pton(AF_INET, "192.0.2.1", &ends.old_saddr);
    inet_pton(AF_INET, "192.0.2.2", &ends.old_daddr);
    inet_pton(AF_INET, "192.0.2.1", &ends.new_saddr);
    inet_pton(AF_INET, "198.51.100.9", &ends.new_daddr);
    udp.encap_sport = htons(4500);
    udp.encap_dport = htons(40001);

    struct nlmsghdr *first = put(&header, sizeof header);
    put(&policy, sizeof policy);
    attribute(XFRMA_MIGRATE, &ends, sizeof ends);
    attribute(XFRMA_IF_ID, &if_id, sizeof if_id);
    attribute(XFRMA_ENCAP, &udp, sizeof udp);
    first->nlmsg_len = length;
    for (size_t at = 0; at < length; at++)
        printf("%02x", message[at]);
    putchar('\n');
    return 0;
}
