// Scripts that give whoever calls them over the web a command line: uploads to a web server.

rule Webshell_PHP_Request_Eval
{
    meta:
        description = "PHP that runs what a request brings along"
        author = "vscan"
        severity = "critical"
    strings:
        $php = "<?"
        $eval = /(eval|assert|system|passthru|shell_exec|popen)\s*\(\s*(base64_decode\s*\(\s*|gzinflate\s*\(\s*|stripslashes\s*\(\s*|@)*\$_(GET|POST|REQUEST|COOKIE)\s*\[/ nocase
    condition:
        filesize < 1MB and $php in (0..1024) and $eval
}

rule Webshell_PHP_Packed
{
    meta:
        description = "PHP that unpacks and runs a long text at its very beginning"
        author = "vscan"
        severity = "high"
    strings:
        $php = "<?php"
        $packed = /eval\s*\(\s*(gzinflate|gzuncompress|str_rot13|base64_decode)\s*\(\s*((gzinflate|str_rot13|base64_decode)\s*\(\s*)*["'][A-Za-z0-9+\/=]{200}/ nocase
    condition:
        filesize < 5MB and $php in (0..64) and $packed
}

rule Webshell_JSP_Exec
{
    meta:
        description = "JSP that runs what a request brings along"
        author = "vscan"
        severity = "critical"
    strings:
        $jsp = "<%"
        $exec = /getRuntime\s*\(\s*\)\s*\.\s*exec\s*\(\s*request\s*\.\s*getParameter\s*\(/
    condition:
        filesize < 1MB and $jsp in (0..4096) and $exec
}
