from .audit_page import ShownGroup as ShownGroup
from .audit_page import write_audit as write_audit
from .page import write_page as write_page
