// Files whose name says one thing and whose bytes say another.

rule Executable_Double_Extension
{
    meta:
        description = "an executable file with the name of a document: invoice.pdf.exe"
        author = "vscan"
        severity = "high"
    condition:
        (uint16(0) == 0x5A4D or extension == ".lnk" or extension == ".hta" or extension == ".vbs" or extension == ".js" or extension == ".wsf")
        and filename matches /\.(pdf|docx?|xlsx?|pptx?|rtf|txt|csv|jpe?g|png|gif|mp[34]|avi|zip)[ _]*\.(exe|scr|com|pif|bat|cmd|cpl|lnk|hta|vbs|vbe|js|jse|wsf)$/i
}

rule Executable_Named_As_Document
{
    meta:
        description = "a Windows program with the name of a document, picture or film"
        author = "vscan"
        severity = "high"
    condition:
        uint16(0) == 0x5A4D and uint32(uint32(0x3C)) == 0x00004550
        and filename matches /\.(pdf|docx?|xlsx?|pptx?|rtf|txt|csv|jpe?g|png|gif|mp[34]|avi|html?)$/i
}

rule Executable_RTL_Override
{
    meta:
        description = "a name that a right-to-left override shows with another ending than it has"
        author = "vscan"
        severity = "high"
    condition:
        // U+202E and its kin, followed by the real ending of something that runs.
        filename matches /\xe2\x80[\xae\xad\xab].*\.(exe|scr|com|pif|bat|cmd|cpl|lnk|hta|vbs|js|wsf)$/i
}
