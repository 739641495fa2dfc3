/*
 * Linked into the static binaries of scripts/dist: names are looked up in files and DNS,
 * whatever /etc/nsswitch.conf says. glibc would load the modules that it names, which
 * belong to the glibc of the machine: with another version, the process crashes.
 */
#include <nss.h>

__attribute__((constructor)) static void look_up_in_files_and_dns(void)
{
    static const char *const databases[] = {"group", "networks", "passwd", "protocols", "services"};
    __nss_configure_lookup("hosts", "files dns");
    for (unsigned i = 0; i < sizeof databases / sizeof *databases; i++) {
        __nss_configure_lookup(databases[i], "files");
    }
}
