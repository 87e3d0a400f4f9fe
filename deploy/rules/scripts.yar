// Scripts and shortcuts that fetch or unpack what they run.

rule Shortcut_Runs_Interpreter
{
    meta:
        description = "a Windows shortcut that starts an interpreter with hidden or encoded commands"
        author = "vscan"
        severity = "high"
    strings:
        $host1 = "powershell" ascii wide nocase
        $host2 = "mshta" ascii wide nocase
        $host3 = "cmd.exe" ascii wide nocase
        $arg1 = "-enc" ascii wide nocase
        $arg2 = "hidden" ascii wide nocase
        $arg3 = "http://" ascii wide nocase
        $arg4 = "https://" ascii wide nocase
        $arg5 = "FromBase64String" ascii wide nocase
        $arg6 = "javascript:" ascii wide nocase
    condition:
        uint32(0) == 0x0000004C and uint32(4) == 0x00021401 and any of ($host*) and any of ($arg*)
}

rule Script_Encoded_PowerShell
{
    meta:
        description = "a script that starts PowerShell hidden, with a long base64 command"
        author = "vscan"
        severity = "high"
    strings:
        $shell = "powershell" ascii wide nocase
        $encoded = /\s-e(nc|ncodedcommand|c)?\s+["']?[A-Za-z0-9+\/]{100}/ ascii wide nocase
    condition:
        filesize < 5MB and uint16(0) != 0x5A4D and uint32(0) != 0x464C457F and $shell and $encoded
}

rule Script_Download_And_Run
{
    meta:
        description = "a Windows script that fetches a file and runs it"
        author = "vscan"
        severity = "high"
    strings:
        $fetch = /(CreateObject|ActiveXObject)\s*\(\s*["'](MSXML2\.(Server)?XMLHTTP|Microsoft\.XMLHTTP|WinHttp\.WinHttpRequest)/ ascii wide nocase
        $save = "ADODB.Stream" ascii wide nocase
        $store = "SaveToFile" ascii wide nocase
        $run1 = "WScript.Shell" ascii wide nocase
        $run2 = "Shell.Application" ascii wide nocase
    condition:
        filesize < 2MB and uint16(0) != 0x5A4D and $fetch and $save and $store and any of ($run*)
}

rule Script_PowerShell_Cradle
{
    meta:
        description = "PowerShell that fetches text and runs it without a file"
        author = "vscan"
        severity = "high"
    strings:
        $cradle1 = /(IEX|Invoke-Expression)\s*\(*\s*New-Object\s+(System\.)?Net\.WebClient\s*\)\s*\.DownloadString\s*\(/ ascii wide nocase
        $cradle2 = /New-Object\s+(System\.)?Net\.WebClient\s*\)\s*\.DownloadString\s*\([^)\r\n]{1,300}\)+\s*\|\s*(IEX|Invoke-Expression)/ ascii wide nocase
        $hide1 = "-WindowStyle Hidden" ascii wide nocase
        $hide2 = "-w hidden" ascii wide nocase
        $hide3 = "-ExecutionPolicy Bypass" ascii wide nocase
        $hide4 = "-ep bypass" ascii wide nocase
    condition:
        filesize < 2MB and uint16(0) != 0x5A4D and uint32(0) != 0x464C457F and any of ($cradle*) and any of ($hide*)
}

rule Html_Smuggling
{
    meta:
        description = "an HTML page that builds a file from its own text and has it saved at once"
        author = "vscan"
        severity = "high"
    strings:
        $page = "<script" nocase
        $decode = "atob("
        $blob = "new Blob("
        $save1 = "msSaveOrOpenBlob"
        $save2 = "createObjectURL"
        $click1 = ".click()"
        $click2 = "msSaveBlob"
        // The beginnings of MZ, ZIP and ISO content in base64, long enough not to be chance.
        $payload1 = /["'`]TV[opqr][A-Za-z0-9+\/]{200}/
        $payload2 = /["'`]UEsDB[A-Za-z0-9+\/]{200}/
        $payload3 = /["'`]AAAAAAAAAAAAAAAAAAAAA[A-Za-z0-9+\/]{200}/
    condition:
        $page and $decode and $blob and any of ($save*) and any of ($click*) and any of ($payload*)
}
