// Macros of old Office documents that run by themselves and start something.

rule Office_Macro_AutoExec_Shell
{
    meta:
        description = "an OLE document with a macro that runs on opening and starts programs"
        author = "vscan"
        severity = "high"
    strings:
        $project = "_VBA_PROJECT" wide
        $attribute = "Attribut\x00e VB_"
        $auto1 = "AutoOpen" nocase
        $auto2 = "Document_Open" nocase
        $auto3 = "Workbook_Open" nocase
        $auto4 = "Auto_Open" nocase
        $run1 = "WScript.Shell" nocase
        $run2 = "Shell.Application" nocase
        $run3 = "URLDownloadToFile" nocase
        $run4 = "powershell" nocase
        $run5 = "MSXML2.XMLHTTP" nocase
        $run6 = "ADODB.Stream" nocase
    condition:
        uint32(0) == 0xE011CFD0 and ($project or $attribute) and any of ($auto*) and any of ($run*)
}

rule RTF_Equation_Object
{
    meta:
        description = "an RTF document with an embedded Equation Editor object (CVE-2017-11882 and kin)"
        author = "vscan"
        severity = "high"
    strings:
        $objdata = "\\objdata" nocase
        // "Equation.3" and the class identifier 0002CE02-0000-0000-C000-000000000046, as hex digits.
        $name = "4571756174696f6e2e33" nocase
        $clsid = "02ce020000000000c000000000000046" nocase
    condition:
        uint32(0) == 0x74725C7B and $objdata and any of ($name, $clsid)
}
