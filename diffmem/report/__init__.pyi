from .audit_page import ShownGroup as ShownGroup
from .audit_page import write_audit as write_audit
from .findings_page import write_findings as write_findings
from .page import write_page as write_page
from .paper import write_figures as write_figures
